"""FSDP: two workers with shards train as two workers with full copies."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import FACTS, NETS, family
from support.two_workers import two_workers

from genflow import runs
from genflow.data.shards import Dataset
from genflow.errors import UsageError
from genflow.recipe.compose import compose
from genflow.storage.store import Store
from genflow.training import checkpoint, fsdp

WORKER = """
import json
from pathlib import Path
from support.small import FACTS, batch, recipe
from genflow import build
from genflow.training import checkpoint, loop
from genflow.batch import Batch
from genflow.training.checkpoint import Checkpoints
from genflow.data.stream import rank_range
from genflow.training.session import Session

folder, cases = Path(folder), json.loads(rest[0])
start, stop = rank_range(6, rank, 2)
torch.set_num_threads(1)

for kind, net, facts in cases:
    in_parts = [(sharded, 2) for sharded in (False, True)] if net == "unet" else []
    for sharded, parts in [(False, 1), (True, 1), *in_parts]:
        def own(step):
            whole = batch(FACTS[facts], step, rows=6)
            return Batch(whole.x[start:stop], whole.label[start:stop])

        train = {"batch": 6, "log_every": 1, "warmup": 2, "precision": "fp32", "checkpoint_every": 2}
        train |= {"accumulate": parts, "checkpoint_activations": parts > 1}
        name = f"{kind}-{net}-{sharded}{'-parts' if parts > 1 else ''}"
        seen = {}
        checkpoints = Checkpoints(folder / name)
        for steps in (2, 4):  # the second run resumes from the end of the first
            chosen = recipe(kind, FACTS[facts], net, train={**train, "steps": 4})
            torch.manual_seed(3)
            model = build.family_of(chosen, FACTS[facts])
            def log(numbers):
                seen[numbers["step"]] = [value for name, value in numbers.items() if name[:4] in ("loss", "grad")]

            def held_out(rows):
                return (batch(FACTS[facts], 900 + group, rows=3) for group in range(2))

            def draw(step, average, work):
                seen[f"average {step}"] = [float(each.square().sum()) for each in (average or {}).values()]

            def validated(step, loss):
                seen[f"held out {step}"] = [loss]

            session = Session(
                held_out=held_out, draw=draw, validated=validated,
                rank=rank, world=2, sharded=sharded, load=checkpoints.newest, save=checkpoints.save,
                log=log, should_stop=lambda: steps == 2 and 2 in seen, barrier=lambda _: dist.barrier(),
            )
            loop.fit(model, own, session, chosen.train, full_batches=lambda step: batch(FACTS[facts], step, rows=6))
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(seen))
"""
CASES = [
    ("flow_matching", "unet", "grey"), ("ddpm", "dit", "grey"), ("flow_matching", "mmdit", "captioned"),
    ("flow_matching", "sd3", "captioned"),
    ("normalizing_flow", "auto", "grey"), ("consistency", "unet", "grey"), ("flow_matching", "mlp", "points"),
]  # fmt: skip


DIFFUSERS = ("ddpm", "unet2d", "grey")  # its import alone takes both workers four seconds


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Some cases, by two workers with copies and by two with shards; each is stopped once and resumed."""

    @functools.cache
    def train(*cases: tuple[str, str, str]) -> Path:
        folder = tmp_path_factory.mktemp("shards")
        two_workers(WORKER, folder, json.dumps(cases))
        return folder

    return train


@pytest.mark.parametrize(("kind", "net", "facts"), [*CASES, pytest.param(*DIFFUSERS, marks=pytest.mark.slow)])
def test_shards_train_as_copies_do(trained: Callable[..., Path], kind: str, net: str, facts: str) -> None:
    """Losses, norms, weights, averages and optimizer states agree up to rounding, in files of the same form."""
    folder = trained(*([DIFFUSERS] if net == "unet2d" else CASES))
    copies, shares = (json.loads((folder / f"{kind}-{net}-{sharded}.json").read_bytes()) for sharded in (False, True))
    assert list(shares) == list(copies)
    moments = [f"average {step}" for step in range(4)] + [f"held out {step}" for step in (1, 2, 3, 4)]
    assert sorted(copies) == sorted(["1", "2", "3", "4", *moments])
    for step, numbers in copies.items():
        assert shares[step] == pytest.approx(numbers, rel=5e-3 if " " in step else 2e-3, abs=1e-5)
    one, other = ({file.name: tensors(file) for file in files(folder / f"{kind}-{net}-{s}")} for s in (False, True))
    assert one.keys() == other.keys()
    for name, own in one.items():
        assert {key: tensor.shape for key, tensor in own.items()} == {k: t.shape for k, t in other[name].items()}
        # compare whole files: Muon makes a full-size step even if a gradient is only rounding error
        apart = sum(float((other[name][key] - tensor).double().square().sum()) for key, tensor in own.items())
        size = sum(float(tensor.double().square().sum()) for tensor in own.values())
        assert apart < 0.02**2 * size, name


@pytest.mark.parametrize("sharded", [False, True])
def test_workers_train_in_parts_as_in_one(trained: Callable[..., Path], sharded: bool) -> None:
    """With gradients of two parts per worker, and layers that are computed again: the same numbers up to rounding."""
    folder, (kind, net, _) = trained(*CASES), CASES[0]
    names = (f"{kind}-{net}-{which}.json" for which in (False, f"{sharded}-parts"))
    whole, parts = (json.loads((folder / name).read_bytes()) for name in names)
    for step, numbers in whole.items():
        assert parts[step] == pytest.approx(numbers, rel=2e-3, abs=1e-5)


def files(folder: Path) -> list[Path]:
    return sorted(checkpoint.Checkpoints(folder).steps()[-1].glob("*.safetensors"))


def tensors(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(file)


def test_a_family_that_cannot_be_sharded_is_rejected(store: Store, prepared: Callable[..., Dataset]) -> None:
    """The error comes before anything starts."""
    prepared("digits")
    with pytest.raises(UsageError, match="the nets of a GAN cannot be sharded"):
        runs.plan(store, compose("gan", {"data": {"name": "digits"}, "cluster": {"strategy": "fsdp"}}))


def test_blocks_are_the_members_of_module_lists() -> None:
    """They are sharded one by one, and the net itself is none of them."""
    net = family("ddpm", FACTS["grey"], "dit").net
    assert len(fsdp.blocks(net)) >= NETS["dit"]["depth"]
    assert net not in fsdp.blocks(net)


def test_an_unsharded_tensor_stays_unchanged() -> None:
    """full_tensor and shard_like return the tensor itself."""
    x = torch.ones(3)
    assert fsdp.full_tensor(x) is x
    assert fsdp.shard_like(x, x) is x
