"""Train, save, resume, sample and measure one case on the pretended device, and compare it with the CPU."""

import json
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from support.small import batch, condition, recipe

from genflow import build
from genflow.batch import Batch
from genflow.families import gaussian, vae
from genflow.families.base import Family, has_encoder
from genflow.maths.rng import SampleRng
from genflow.maths.samplers import SAMPLERS
from genflow.sampling.engine import Engine
from genflow.training import checkpoint, loop
from genflow.training.session import Session
from pretended_cuda.cases import DEFAULTS, Case
from pretended_cuda.device import ROOT, Seen
from pretended_cuda.pretend import pretended

ROWS, STEPS = 8, 3  # steps before the restart, and after it
SEEDS = [11, 3, 7]
# Largest differences between the devices: of logged numbers, relative, and of all weights, as a share of the way that
# training has moved them. AdamW divides a gradient by its own size, so weights whose gradient is only rounding move as
# far as others. The net `unet2d` has many, the bias of each convolution before a norm; a discriminator and a VAE have
# some. Normals differ by rounding, too.
NUMBERS_DIFFER, WEIGHTS_DIFFER = 1e-4, 1e-3
MORE = {"unet2d": 0.2, "autoencoder_kl": 0.01, "gan": 0.05, "vae": 0.02}  # by net or family
IMAGES_DIFFER = 1.0, 1e-3  # in grey levels, and of points or latents
Result = dict[str, Any]

gaussian.CODE_STEPS = gaussian.STRAIGHTNESS_STEPS = 2  # the same code, fewer times
vae.FLOW_STEPS = 3


@dataclass(frozen=True)
class Fitted:
    """What training left.

    Args:
        average: the averaged weights, on the CPU.
        numbers: what was logged after the restart.
        checkpoint: the folder of the last one.
        syncs: of one step, by line of genflow.
        copies: of one step, without those of the batch.
        sent: the same of copies that nothing waits for.
    """

    average: dict[str, torch.Tensor]
    numbers: list[dict[str, float]]
    checkpoint: Path
    syncs: dict[str, int]
    copies: dict[str, int]
    sent: dict[str, int]


class Problems:
    """Collects what goes wrong, by stage."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def attempt(self, stage: str, use: Callable[[], Any]) -> Any:
        """The result of `use`; an error is noted with its innermost line of genflow, and the result is None."""
        try:
            return use()
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [f"{frame.filename}:{frame.lineno}" for frame in frames if f"{ROOT}/genflow/" in frame.filename]
            words = str(error).splitlines() or [""]
            self.found.append(f"{stage}: {type(error).__name__}: {words[0][:200]} at {(own or ['?'])[-1]}")
            return None


def drive(case: Case, *, thorough: bool) -> Result:
    """The problems of a case, and the synchronisations and copies of one training step by line.

    Args:
        case: what to try.
        thorough: with every sampler, and in bfloat16; else with one sampler of each sort.
    """
    warnings.simplefilter("ignore")
    problems, exact = Problems(), {"optimizer": "adamw", "lr": 0.001, "precision": "fp32"}
    expected = fitted("cpu", case, **exact)
    counted: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder, pretended() as seen:
        fit = problems.attempt("fit", lambda: fitted("cuda:0", case, folder=Path(folder), seen=seen, **exact))
        if fit is not None:
            counted = {"syncs": fit.syncs, "copies": fit.copies, "sent": fit.sent}
            _compare(case, fit, expected, problems)
            if thorough or case.name in DEFAULTS:
                _fit_in_parts(case, seen, problems)
            _use(case, fit.checkpoint, problems, thorough=thorough)
        draws = dict(seen.draws)
    players = len(case.made().players)
    return {"problems": problems.found, "kind": case.kind, "players": players, "draws": draws, **counted}


def _fit_in_parts(case: Case, seen: Seen, problems: Problems) -> None:
    """With Muon in bfloat16, in two parts per step, and with layers computed again: no step waits more often."""
    train: dict[str, Any] = {"precision": "bf16", "accumulate": 2, "checkpoint_activations": True}
    fit = problems.attempt("fit in parts", lambda: fitted("cuda:0", case, (3,), seen=seen, **train))
    if fit is not None and sum(fit.syncs.values()) > len(case.made().players):
        problems.found.append(f"fit in parts: it waits in {fit.syncs}")
    if fit is not None and fit.copies:
        problems.found.append(f"fit in parts: it copies in {fit.copies}")


def fitted(
    device: str, case: Case, budgets: Sequence[int] = (STEPS, 2 * STEPS), folder: Path | None = None,
    seen: Seen | None = None, **train: Any,
) -> Fitted:  # fmt: skip
    """Train up to each budget of steps, each time in a new family that resumes from the checkpoint of the last.

    One step in the middle is counted, in which nothing is reported or saved.
    """
    kept: list[Path] = []
    numbers: list[dict[str, float]] = []
    at: dict[int, list[Counter[str]]] = {}
    prepared = [on_device(batch(case.facts, step, ROWS), device) for step in range(budgets[-1])]
    with tempfile.TemporaryDirectory() as scratch:

        def save(step: int, write: Callable[[Path], None]) -> None:
            kept.append((folder or Path(scratch)) / f"{step}-{len(kept)}")
            kept[-1].mkdir()
            write(kept[-1])

        def batches(step: int) -> Batch:
            if seen is not None:
                at.setdefault(step, [Counter(each) for each in (seen.syncs, seen.copies, seen.sent)])
            return prepared[step]

        session = Session(device=device, load=lambda: kept[-1] if kept else None, save=save, log=numbers.append)
        for number, steps in enumerate(budgets):
            own = {"steps": steps, "batch": ROWS, "warmup": 1, "log_every": 1 if number else 1000, **train}
            settings = recipe(case.kind, case.facts, case.net, family=case.options, train=own)
            whole = lambda step: prepared[step % len(prepared)]  # noqa: E731
            if number and case.made().validates:  # not where a step is counted: every step is a moment in so few
                session.held_out = lambda rows: prepared[:2]
                session.validated = lambda step, loss: numbers.append({"step": step, "loss held out": loss})
            loop.fit(case.made(), batches, session, settings.train, full_batches=whole)
        average = {name: each.cpu() for name, each in load_file(kept[-1] / "ema.safetensors").items()}
        counted = [_own(at[2][i] - at[1][i]) if seen is not None else {} for i in range(3)]
        return Fitted(average, numbers, kept[-1], *counted)


def _own(counted: Counter[str]) -> dict[str, int]:
    return {line: count for line, count in counted.items() if line.startswith(("genflow/", "jobs/"))}


def on_device(given: Batch, device: str) -> Batch:
    """A copy of a batch on a device."""
    return Batch(given.x.to(device), given.label.to(device))


def _compare(case: Case, found: Fitted, expected: Fitted, problems: Problems) -> None:
    start = {name: parameter.detach() for name, parameter in case.made().named_parameters()}
    moved = _distance(expected.average, {name: start[name] for name in expected.average})
    apart = _distance(found.average, expected.average) / max(moved, 1e-9)  # a student that equals its teacher stays
    if not apart <= MORE.get(case.net, MORE.get(case.kind, WEIGHTS_DIFFER)):
        problems.found.append(f"the weights' difference from the CPU's is {apart:.2g} of their way")
    for ours, theirs in zip(found.numbers, expected.numbers, strict=True):
        for name, value in theirs.items():
            apart = abs(ours[name] - value) / (1 + abs(value))
            if name.startswith(("loss", "gradient")) and not apart <= NUMBERS_DIFFER:
                problems.found.append(f"{name} of step {ours['step']} differs from the CPU's by {apart:.2g}")


def _distance(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([(some[name] - other).square().sum() for name, other in others.items()]).sum().sqrt())


def _use(case: Case, weights: Path, problems: Problems, *, thorough: bool) -> None:
    """Sample, walk, encode and measure."""
    settings = recipe(case.kind, case.facts, case.net, family=case.options)
    engines = {device: Engine(case.made(), settings, device=device) for device in ("cpu", "cuda:0")}
    for engine in engines.values():
        checkpoint.load_weights(weights, engine.family)
    family_ = engines["cuda:0"].family
    if family_.is_autoencoder:
        images = np.zeros((3, *case.facts.shape[1:], case.facts.shape[0]), np.uint8)
        problems.attempt("reconstruct", lambda: engines["cuda:0"].reconstruct(images))
        problems.attempt("finish", lambda: family_.finish(lambda step: on_device(batch(case.facts, step, 3), "cuda:0")))
        return
    labels = None if case.facts.text else [seed % (case.facts.classes + 1) for seed in SEEDS]
    for way in ways(family_, thorough=thorough):
        stage = f"sample {json.dumps(way)}"
        drawn = [problems.attempt(stage, lambda own=own, way=way: _draw(own, labels, way)) for own in engines.values()]
        if all(each is not None for each in drawn):
            apart = float(np.abs(drawn[0].astype(float) - drawn[1].astype(float)).max())
            if not apart <= IMAGES_DIFFER[case.facts.levels is None]:
                problems.found.append(f"sample {json.dumps(way)} differs from the CPU's by {apart:.2g}")
    given = on_device(batch(case.facts, 0, len(SEEDS)), "cuda:0")
    rng = SampleRng(SEEDS, "likelihood", "cuda:0")
    likely = problems.attempt("likelihood", lambda: family_.log_likelihood(given.x, given.label, rng))
    if likely is not None and likely.nats.device.type != "cuda":
        problems.found.append("likelihood: it left the device")
    if has_encoder(type(family_)):
        rng = SampleRng(SEEDS, "code", "cuda:0")
        code = problems.attempt("encode", lambda: family_.encode(given.x, given.label, rng))
        if code is not None:
            problems.attempt("decode", lambda: family_.decode(code, given.label, rng))
    noise = SampleRng(SEEDS, "way", "cuda:0").normal((len(SEEDS), *family_.noise_shape))
    problems.attempt("straightness", lambda: family_.straightness(noise, given.label))
    problems.attempt("finish", lambda: family_.finish(lambda step: on_device(batch(case.facts, step, 3), "cuda:0")))


def _draw(engine: Engine, labels: list[int] | None, way: dict[str, Any]) -> np.ndarray:
    if engine.family.facts.text is None and engine.autoencoder is None and not engine.family.facts.is_latents:
        return engine.draw(SEEDS, labels, **way).images
    options = build.sample_options(engine.family, {**engine.options, **way})
    rng = SampleRng(SEEDS, "sample", engine.device)
    noise = rng.normal((len(SEEDS), *engine.family.noise_shape))
    label = condition(engine.family.facts, SEEDS).to(engine.device)
    return engine.family.sample(noise, label, rng, **options).x.float().cpu().numpy()


def ways(model: Family, *, thorough: bool) -> list[dict[str, Any]]:
    """Sampling options: every sampler, and every branch of guidance."""
    known = build.schema(type(model).sample).model_fields
    found: list[dict[str, Any]] = [{}]
    guided = "guidance" in known and bool(model.facts.classes or model.facts.text)
    if "sampler" in known:
        names = list(SAMPLERS) if thorough else ["ddpm", "rk45", "dpmpp_2m"]
        found = [{"sampler": name, "steps": 3, "tolerance": 0.1} for name in names]
        found += [{"sampler": "ddim", "eta": 0.5, "steps": 3, "clip": True, "spacing": "karras"}] if thorough else []
        if guided:
            inside = {"guidance": 2.0, "guidance_low": 0.2, "guidance_high": 0.8, "steps": 3, "tolerance": 0.1}
            found += [{**inside, "sampler": name} for name in ("ab2", "rk45")][0 if thorough else 1:]
    elif guided:
        found += [{"guidance": 2.0}]
    if "draw" in known:
        found += [{"draw": True}]
    return found
