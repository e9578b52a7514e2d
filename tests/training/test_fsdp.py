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
from genflow.training import fsdp
from genflow.training.checkpoint_folders import Checkpoints

WORKER = """
import json, shutil, threading
from pathlib import Path
from support.small import FACTS, batch, recipe
from genflow import build
from genflow.training import loop
from genflow.batch import Batch
from genflow.training.checkpoint_folders import Checkpoints
from genflow.data.stream import rank_range
from genflow.training.session import Session

folder, cases, world = Path(folder), json.loads(rest[0]), dist.get_world_size()
torch.set_num_threads(1)


def train(name, case, *, sharded, world=world, parts=1, stop=99, made=Checkpoints, log=lambda step: None):
    kind, net, facts = case
    start, end = rank_range(6, rank, world)

    def own(step):
        whole = batch(FACTS[facts], step, rows=6)
        return Batch(whole.x[start:end], whole.label[start:end])

    train = {"batch": 6, "log_every": 1, "warmup": 2, "precision": "fp32", "checkpoint_every": 2, "steps": 4}
    train |= {"patience": 9}  # with it a training has all moments
    train |= {"accumulate": parts, "checkpoint_activations": parts > 1}
    file = folder / f"{name}.json"
    seen = json.loads(file.read_text()) if file.exists() else {}
    checkpoints = made(folder / name, keep=9)
    chosen = recipe(kind, FACTS[facts], net, train=train)
    torch.manual_seed(3)
    model = build.family_of(chosen, FACTS[facts])

    def note(numbers):
        step = numbers["step"]
        seen[str(step)] = [value for name, value in numbers.items() if name[:4] in ("loss", "grad")]
        log(step)

    def held_out(rows):
        return (batch(FACTS[facts], 900 + group, rows=3) for group in range(2))

    def draw(step, average, work):
        seen[f"average {step}"] = [float(each.square().sum()) for each in (average or {}).values()]

    def validated(step, loss):
        seen[f"held out {step}"] = [loss]

    session = Session(
        held_out=held_out, draw=draw, validated=validated, rank=rank, world=world, sharded=sharded,
        load=checkpoints.newest, open=checkpoints.open, save=checkpoints.save, shards=checkpoints,
        log=note, should_stop=lambda: str(stop) in seen, barrier=lambda _: world > 1 and dist.barrier(),
    )
    try:
        loop.fit(model, own, session, chosen.train, full_batches=lambda step: batch(FACTS[facts], step, rows=6))
    except Exception as error:
        seen["error"] = f"{type(error).__name__}: {error}"
    if rank == 0:
        file.write_text(json.dumps(seen))
    if "error" in seen:
        (folder / f"{name}-{rank}.error").write_text(seen["error"])
    if world > 1:
        dist.barrier()  # the next call of the other rank reads the file


def copied(name, new):
    if rank == 0:
        shutil.copytree(folder / name, folder / new)
        shutil.copy(folder / f"{name}.json", folder / f"{new}.json")
"""
CASES_OF = """
for case in cases:
    name = f"{case[0]}-{case[1]}"
    for sharded, parts in [(False, 1), (True, 1), *((sharded, 2) for sharded in (False, True) if case[1] == "unet")]:
        each = f"{name}-{sharded}{'-parts' if parts > 1 else ''}"
        if sharded:  # is stopped, and resumes from the end of the first attempt
            train(each, case, sharded=True, parts=parts, stop=2)
        train(each, case, sharded=sharded, parts=parts)
"""
CHECKPOINTS = """
case = ("flow_matching", "mlp", "points")
written = threading.Event()


class Late(Checkpoints):
    def folder_of(self, attempt):
        assert rank or written.wait(60)
        return super().folder_of(attempt)


def release(step):
    if step == 3:
        (folder / "late.txt").write_text(" ".join(path.name for path in (folder / "late").glob("*/*")))
        written.set()


class Full(Checkpoints):
    def add(self, attempt, names):
        if rank and "step_00000004" in attempt:
            raise OSError(28, "No space left on device")
        return super().add(attempt, names)


class Refused(Checkpoints):
    def commit(self, attempt, files):
        raise OSError(28, "No space left on device")


train("copies", case, sharded=False)
train("stopped", case, sharded=True, stop=2)
dist.barrier()
copied("stopped", "alone")
copied("stopped", "resumed")
dist.barrier()
train("resumed", case, sharded=True)
train("late", case, sharded=True, made=Late, log=release)
train("full", case, sharded=True, made=Full)
train("refused", case, sharded=True, made=Refused)
if rank == 0:
    train("alone", case, sharded=True, world=1)
    train("joined", case, sharded=True, world=1, stop=2)
dist.barrier()
train("joined", case, sharded=True)
"""
CASES = [
    ("flow_matching", "unet", "grey"), ("ddpm", "dit", "grey"), ("flow_matching", "mmdit", "captioned"),
    ("flow_matching", "sd3", "captioned"),
    ("normalizing_flow", "auto", "grey"), ("consistency", "unet", "grey"), ("flow_matching", "mlp", "points"),
]  # fmt: skip


DIFFUSERS = ("ddpm", "unet2d", "grey")  # its import alone takes both workers four seconds


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Some cases, by two workers with copies and by two with shards, who stop once and resume."""

    @functools.cache
    def train(*cases: tuple[str, str, str]) -> Path:
        folder = tmp_path_factory.mktemp("shards")
        code = WORKER + CASES_OF + CHECKPOINTS if cases == tuple(CASES) else WORKER + CASES_OF
        two_workers(code, folder, json.dumps(cases))  # one pair of processes, because starting takes seconds
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
        assert shares[step] == pytest.approx(numbers, rel=1e-2 if " " in step else 2e-3, abs=1e-5)
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


@pytest.fixture(scope="module")
def saved(trained: Callable[..., Path]) -> Path:
    """A small net that two workers train, with checkpoints of shards."""
    return trained(*CASES)


def test_every_worker_writes_its_shards(saved: Path) -> None:
    """In files without pickles, of which none has a whole matrix; the end has whole tensors."""
    kept = Checkpoints(saved / "resumed")
    names = {path.name: sorted(file.name for file in path.iterdir()) for path in kept.steps()}
    shards = [f"shard-0000{worker}-model-00001-of-00001.safetensors" for worker in (1, 2)]
    assert names["step_00000002"] == names["step_00000003"] == ["manifest.json", *shards, "state.json"]
    whole = ["ema.safetensors", "manifest.json", "optimizer.safetensors", "state.json", "weights.safetensors"]
    assert names["step_00000004"] == whole
    parts = [tensors(kept.folder / "step_00000002" / name) for name in shards]
    full = tensors(kept.folder / "step_00000004/weights.safetensors")
    for name, weight in full.items():
        assert sum(part[f"weights/{name}"].shape[0] for part in parts) == weight.shape[0]
    assert {name.split("/")[0] for name in parts[0]} == {"weights", "ema", "optimizer"}


def test_a_stopped_run_has_the_same_bits(saved: Path) -> None:
    """As one that was not stopped, whose checkpoint was written while training continued."""
    resumed, late = (Checkpoints(saved / name).folder for name in ("resumed", "late"))
    assert (saved / "late.txt").read_text(encoding="utf-8") == ""  # at step 3, no file of step 2 was written
    for path in sorted(late.glob("step_*/*.safetensors")):
        other = resumed / path.relative_to(late)
        ours, theirs = tensors(path), tensors(other)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()), path
    assert len(list(late.glob("step_*/*.safetensors"))) == 5


@pytest.mark.parametrize("name", ["alone", "joined"])
def test_another_number_of_workers_resumes(saved: Path, name: str) -> None:
    """One worker resumes from the shards of two, and two from the whole tensors of one, up to rounding."""
    expected, found = (json.loads((saved / f"{each}.json").read_bytes()) for each in ("copies", name))
    for step in "1234":
        assert found[step] == pytest.approx(expected[step], rel=2e-3)
    assert distance(saved / "copies", saved / name) < 0.02


@pytest.mark.parametrize(("name", "newest"), [("full", "step_00000002"), ("refused", None)])
def test_a_checkpoint_that_fails_on_one_worker_ends_both(saved: Path, name: str, newest: str | None) -> None:
    """It does not exist, and the one before it stays."""
    errors = [(saved / f"{name}-{rank}.error").read_text(encoding="utf-8") for rank in (0, 1)]
    assert all("No space left" in error or "disk full" in error for error in errors)
    kept = Checkpoints(saved / name)
    assert [path.name for path in kept.steps()] == ([newest] if newest else [])
    assert sorted(path.name for path in kept.folder.iterdir()) == [path.name for path in kept.steps()]


@pytest.mark.slow
def test_three_workers_resume_from_two(tmp_path: Path) -> None:
    """Most matrices have a number of rows that three do not divide."""
    case = json.dumps([("ddpm", "dit", "grey")])
    two_workers(WORKER + "train('run', cases[0], sharded=True, stop=2)", tmp_path, case)
    two_workers(WORKER + "train('run', cases[0], sharded=True)", tmp_path, case, world=3)
    two_workers(WORKER + "train('copies', cases[0], sharded=False)", tmp_path, case)
    assert distance(tmp_path / "copies", tmp_path / "run") < 0.02


def distance(one: Path, other: Path) -> float:
    """Of the weights at the end, relative to their norm."""
    ours, theirs = (tensors(Checkpoints(each).steps()[-1] / "weights.safetensors") for each in (one, other))
    apart = sum(float((theirs[name] - tensor).double().square().sum()) for name, tensor in ours.items())
    return (apart / sum(float(tensor.double().square().sum()) for tensor in ours.values())) ** 0.5


def files(folder: Path) -> list[Path]:
    return sorted(Checkpoints(folder).steps()[-1].glob("*.safetensors"))


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
