"""What runs on the pretended device besides the families: functions that return their problems."""

import contextlib
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from support.latents import SMALL, dataset, encoded, pictures, task
from support.small import FACTS, batch, family, recipe
from support.trained_run import trained_run

from genflow.batch import Batch
from genflow.data.shards import Dataset
from genflow.evaluation import evaluate
from genflow.recipe.schema import Evaluate, parse
from genflow.sampling import encode, reflow
from genflow.sampling.engine import Engine
from genflow.serving.engine_process import Batch as ServedBatch
from genflow.serving.engine_process import _draw
from genflow.storage.store import Artifact, Store
from genflow.training import checkpoint, loop, sharded_checkpoint
from genflow.training.session import Session
from genflow.training.workers import Workers
from pretended_cuda import device
from pretended_cuda.cases import QUICK, Case, every
from pretended_cuda.drive import Problems, drive, on_device
from pretended_cuda.pretend import pretended

GREY = FACTS["grey"]
UNET = Case("flow_matching", "grey", "unet")


@functools.cache
def made() -> tuple[Store, Dataset, Artifact, Artifact, Artifact]:
    """A store with pictures, an autoencoder, latents, and a run on these; made on the CPU."""
    folder = Path(tempfile.mkdtemp(prefix="pretended-cuda-"))
    store = Store(folder / "store")
    data = dataset(store, pictures(folder / "colours", 60), val=0.3)
    autoencoder = trained_run(store, data, "autoencoder", steps=3, **SMALL)
    latents = encoded(store, task(store, autoencoder))
    run = trained_run(store, data, "flow_matching", steps=3, latents=latents, sample={"steps": 2}, net="dit")
    return store, data, autoencoder, latents, run


def refusals() -> list[str]:
    """What the device fails to refuse or to notice; this is the test of the device itself."""
    missed = []
    with pretended() as seen:
        x, host = torch.ones(3, 4, device="cuda"), torch.ones(3, 4)
        refused: dict[str, Callable[[], Any]] = {
            "an operation on two devices": lambda: x + host,
            "numpy() of a CUDA tensor": lambda: x.numpy(),
            "a draw by the CPU's generator": lambda: torch.randn(3, device="cuda", generator=torch.Generator()),
            "an index on the device into a CPU tensor": lambda: host[torch.zeros(1, dtype=torch.long, device="cuda")],
        }
        for what, use in refused.items():
            try:
                use()
                missed.append(what)
            except (RuntimeError, TypeError):
                pass
        noticed: dict[str, Callable[[], Any]] = {
            "item": lambda: x.sum().item(), "bool": lambda: bool(x.any()), "tolist": lambda: x.tolist(),
            "nonzero": lambda: x.nonzero(), "a boolean index": lambda: x[x > 0], "cpu": lambda: x.cpu(),
        }  # fmt: skip
        for what, use in noticed.items():
            before = seen.syncs.total()
            use()
            missed += [what] * (seen.syncs.total() != before + 1)
        host.cuda()
        torch.randn(3, device="cuda")
        missed += ["a copy to the device"] * (seen.copies.total() != 1) + ["a global draw"] * (seen.draws.total() != 1)
    return missed


def autoguidance() -> list[str]:
    """A run on the device that a weaker run guides, which was loaded on the CPU."""
    problems = Problems()
    with pretended():
        settings = recipe(UNET.kind, GREY, UNET.net)
        strong, weak = Engine(UNET.made(), settings, device="cuda:0"), Engine(UNET.made(), settings)
        strong.family.guided_by(weak.family)
        for sampler in ("ab2", "rk45"):
            way = {"sampler": sampler, "steps": 3, "guidance": 2.0, "tolerance": 0.1}
            problems.attempt(f"sample {sampler}", lambda way=way: strong.draw([1], None, **way))
    return problems.found


def ranks() -> list[str]:
    """The first of two workers, which is alone: the process group only takes tensors of the device."""
    problems = Problems()
    calls: list[str] = []

    def collective(tensor: torch.Tensor, *_: Any, async_op: bool = False, **__: Any) -> Any:
        calls.append(tensor.device.type)
        if tensor.device.type != "cuda":
            raise RuntimeError("No backend type associated with device type cpu")
        return type("Work", (), {"wait": lambda self: None})() if async_op else None

    saved = {name: getattr(dist, name) for name in ("all_reduce", "broadcast")}
    for name in saved:
        setattr(dist, name, collective)
    connected, loop.connected = loop.connected, lambda rank, world: contextlib.nullcontext(Workers(rank, world))
    try:
        for kind, train in (("flow_matching", {}), ("gan", {}), ("flow_matching", {"minutes": 1.0})):
            train = {"steps": 3, "batch": 8, "log_every": 2, "checkpoint_every": 2, **train}
            settings = recipe(kind, GREY, train=train)
            with pretended():
                whole = [on_device(batch(GREY, step), "cuda:0") for step in range(3)]
                own = [Batch(b.x[:4], b.label[:4]) for b in whole]
                session = Session(device="cuda:0", world=2, rank=0)
                fit = functools.partial(loop.fit, family(kind, GREY), own.__getitem__, session, settings.train)
                problems.attempt(f"{kind} {train}", lambda fit=fit, whole=whole: fit(full_batches=whole.__getitem__))
    finally:
        loop.connected = connected
        for name, function in saved.items():
            setattr(dist, name, function)
    return problems.found or ([] if calls else ["no worker was asked"])


def checkpoints() -> list[str]:
    """A checkpoint of whole tensors and one of shards wait for the device once, however many tensors they have."""
    missed = []
    with pretended() as seen:
        own = family("flow_matching", GREY).to("cuda:0")
        average = {name: p.detach() for name, p in own.named_parameters()}
        ways: dict[str, Callable[[], Any]] = {
            "gather": lambda: checkpoint.gather(own, average, {}),
            "to_cpu": lambda: sharded_checkpoint.to_cpu(own.state_dict(), replicas=True),
        }
        for name, use in ways.items():
            before = seen.syncs.total()
            use()
            if seen.syncs.total() != before + 1:
                missed.append(f"{name} waits {seen.syncs.total() - before} times: {dict(seen.syncs)}")
    return missed


def latents() -> list[str]:
    """A run on latents: the engine decodes them, and reflow and encoding write what they write on the CPU."""
    problems = Problems()
    store, data, _, encoded_, run = made()
    plan_of_pairs = reflow.plan(store, run.id, parse({"reflow": {"pairs": 3}}))
    plan_of_latents = task(store, store.find("runs", encoded_.meta["autoencoder"]))
    folder = encoded_.path
    rows = np.arange(3)

    def results(device: str) -> dict[str, np.ndarray]:
        engine = Engine.load(run, device=device)
        teacher, encoder = reflow.Teacher(plan_of_pairs, device), encode.Encoder(plan_of_latents, folder, device)
        images = data.splits["train"].take(rows)
        return {
            "draw": engine.draw([1, 2, 3], [0, 1, 2]).images,
            "reconstruct": engine.reconstruct(images),
            "walk": engine.draw([1, 2], toward=[(9, 0.0), (9, 0.5)]).images,
            "encode": engine.encode(images, None, [1, 2, 3]),
            "reflow": teacher.pair(range(3))[3],
            "latents": encoder.latents(rows).astype(np.float32),
        }

    expected = results("cpu")
    with pretended():
        found = problems.attempt("latents", lambda: results("cuda:0")) or {}
        for name, value in found.items():
            apart = float(np.abs(value.astype(float) - expected[name].astype(float)).max())
            if not apart <= (1 if value.dtype == np.uint8 else 2e-3):
                problems.found.append(f"{name} differs from the CPU's by {apart:.2g}")
    return problems.found


def evaluation() -> list[str]:
    """A run is measured whole: samples, features, likelihood, memorization, straightness."""
    problems = Problems()
    store, _, autoencoder, _, run = made()
    few = Evaluate(samples=16, sweep_samples=16, steps=(1,), bootstrap=2, likelihood=4, features="random")
    with pretended():
        for each in (run, autoencoder):
            data = store.find("datasets", each.meta["dataset"])
            document = problems.attempt(each.name, lambda each=each, data=data: evaluate.evaluate(
                store, each, data, few, lambda *_, **__: None
            ))  # fmt: skip
            if document and not document["speed"]["device"].startswith("cuda"):
                problems.found.append(f"{each.name}: measured on {document['speed']['device']}")
    return problems.found


def serving() -> list[str]:
    """The engine of a served model draws, walks, encodes and sends frames."""
    from genflow.serving.engine_cache import EngineCache
    from genflow.serving.model_list import served_models

    problems = Problems()
    store, data, _, _, run = made()
    (entry,) = served_models(store, [run])
    images = list(data.splits["train"].take(np.arange(2)))

    class Replica:
        def send(self, answer: Any) -> None:
            pass

        def poll(self) -> bool:
            return False

    with pretended():
        cache = EngineCache(1 << 30)
        if not cache.engine(entry).device.startswith("cuda"):
            problems.found.append(f"the model is on {cache.engine(entry).device}")
        common = {"entry": entry, "options": {}, "seeds": [1, 2], "conditions": [0, 1]}
        served = ServedBatch(task="encode", inputs=images, **common)
        codes = problems.attempt("encode", lambda: _draw(cache, served, Replica()))
        for name, inputs, frames in (("samples", (), True), ("walks", [(5, 0.5), (6, 1.0)], False)):
            served = ServedBatch(task=name, inputs=inputs, send_frames=frames, **common)
            problems.attempt(name, lambda served=served: _draw(cache, served, Replica()))
        if codes is not None:
            served = ServedBatch(task="decode", inputs=list(codes.images), **common)
            problems.attempt("decode", lambda: _draw(cache, served, Replica()))
    return problems.found


def run(name: str) -> Any:
    """The result of a part or of a case, as a value that JSON can hold; after `float32:` without float64."""
    if name.startswith("float32:"):
        device.has_float64 = False
        try:
            return run(name.removeprefix("float32:"))
        finally:
            device.has_float64 = True
    if name in PARTS:
        return PARTS[name]()
    if name in QUICK:
        return drive(QUICK[name], thorough=False)
    return drive(next(case for case in every() if case.name == name), thorough=True)


PARTS: dict[str, Callable[[], list[str]]] = {
    each.__name__: each for each in (refusals, autoguidance, ranks, checkpoints, latents, evaluation, serving)
}
