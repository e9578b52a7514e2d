"""Shares of a net: two workers that hold half of every parameter each train as two that hold all of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.pair import two_workers
from support.small import FACTS, NETS, family

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
from genflow.data.stream import share
from genflow.training.session import Session

folder, cases = Path(folder), json.loads(rest[0])
start, stop = share(6, rank, 2)
torch.set_num_threads(1)

for kind, net, facts in cases:
    for sharded in (False, True):
        def own(step):
            whole = batch(FACTS[facts], step, rows=6)
            return Batch(whole.x[start:stop], whole.label[start:stop])

        train = {"batch": 6, "log_every": 1, "warmup": 2, "precision": "fp32", "checkpoint_every": 2}
        seen = {}
        checkpoints = Checkpoints(folder / f"{kind}-{net}-{sharded}")
        for steps in (2, 4):  # the second goes on from the first's end
            chosen = recipe(kind, FACTS[facts], net, train={**train, "steps": 4})
            torch.manual_seed(3)
            model = build.family_of(chosen, FACTS[facts])
            def log(numbers):
                seen[numbers["step"]] = [value for name, value in numbers.items() if name[:4] in ("loss", "grad")]

            session = Session(
                rank=rank, world=2, sharded=sharded, load=checkpoints.newest, save=checkpoints.save,
                log=log, should_stop=lambda: steps == 2 and 2 in seen, barrier=lambda _: dist.barrier(),
            )
            loop.fit(model, own, session, chosen.train, full_batches=lambda step: batch(FACTS[facts], step, rows=6))
        if rank == 0:
            (folder / f"{kind}-{net}-{sharded}.json").write_text(json.dumps(seen))
"""
CASES = [
    ("flow_matching", "unet", "grey"), ("ddpm", "dit", "grey"),
    ("ddpm", "unet2d", "grey"),
    ("normalizing_flow", "auto", "grey"), ("consistency", "unet", "grey"), ("flow_matching", "mlp", "points"),
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case, by two workers with copies and by two with shares; each is stopped once and goes on."""
    folder = tmp_path_factory.mktemp("shares")
    two_workers(WORKER, folder, json.dumps(CASES))
    return folder


@pytest.mark.parametrize(("kind", "net", "facts"), CASES)
def test_shares_train_as_copies_do(trained: Path, kind: str, net: str, facts: str) -> None:
    """The same losses, norms and, in the same files, weights, averages and slots, to rounding."""
    copies, shares = (json.loads((trained / f"{kind}-{net}-{sharded}.json").read_text()) for sharded in (False, True))
    assert list(shares) == list(copies) == ["1", "2", "3", "4"]
    for step, numbers in copies.items():
        assert shares[step] == pytest.approx(numbers, rel=2e-3, abs=1e-5)
    one, other = ({file.name: tensors(file) for file in files(trained / f"{kind}-{net}-{s}")} for s in (False, True))
    assert one.keys() == other.keys()
    for name, own in one.items():
        assert {key: tensor.shape for key, tensor in own.items()} == {k: t.shape for k, t in other[name].items()}
        # as a whole: Muon makes a step of full size of a gradient that is nothing but rounding
        apart = sum(float((other[name][key] - tensor).double().square().sum()) for key, tensor in own.items())
        size = sum(float(tensor.double().square().sum()) for tensor in own.values())
        assert apart < 0.02**2 * size, name


def files(folder: Path) -> list[Path]:
    return sorted(checkpoint.Checkpoints(folder).steps()[-1].glob("*.safetensors"))


def tensors(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(file)


def test_who_cannot_share_is_told(store: Store, prepared: Callable[..., Dataset]) -> None:
    """Before anything starts, with what to do instead."""
    prepared("digits")
    with pytest.raises(UsageError, match="a GAN's nets cannot be shared out"):
        runs.plan(store, compose("gan", {"data": {"name": "digits"}, "cluster": {"strategy": "fsdp"}}))


def test_blocks_are_what_stands_in_lists() -> None:
    """So that no more than one of them is whole at a time."""
    net = family("ddpm", FACTS["grey"], "dit").net
    assert len(fsdp.blocks(net)) >= NETS["dit"]["depth"]
    assert net not in fsdp.blocks(net)


def test_what_is_not_cut_stays_as_it_is() -> None:
    """On one worker nothing changes."""
    x = torch.ones(3)
    assert fsdp.full_tensor(x) is x
    assert fsdp.shard_like(x, x) is x
