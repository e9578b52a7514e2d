"""Workers whose weights or checkpoints differ, or that die or hang, end in one line on every other worker."""

import json
import os
from typing import Any

import pytest
import torch
from support.two_workers import two_workers

from genflow.training.workers import digest

PROGRAM = """
import datetime, json, os, shutil, signal, time
from pathlib import Path
from support.small import FACTS, batch, recipe
from genflow import build
from genflow.batch import Batch
from genflow.errors import DataError
from genflow.training import checkpoint_folders, loop, workers
from genflow.training.checkpoint_folders import Checkpoints
from genflow.training.session import Session

dist.destroy_process_group()
torch.set_num_threads(1)
checkpoint_folders.LOOKS, workers.ANSWER = 1, datetime.timedelta(seconds=1)
FOLDER, POINTS, told = Path(folder), FACTS["points"], {}


def train(name, folder, *, seed=3, change=None, timeout=60, steps=4, **session):
    dist.init_process_group("gloo", init_method=f"file://{FOLDER}/{name}", rank=rank, world_size=2,
                            timeout=datetime.timedelta(seconds=timeout))
    train = {"steps": steps, "batch": 8, "log_every": 1, "warmup": 2, "precision": "fp32", "checkpoint_every": 2}
    chosen = recipe("flow_matching", POINTS, train=train)
    torch.manual_seed(seed)
    model = build.family_of(chosen, POINTS)

    def own(step):
        whole = batch(POINTS, step)
        x = whole.x[4 * rank : 4 * rank + 4].clone()
        if change and rank == 1:
            change(step, model, x)
        return Batch(x, whole.label[4 * rank : 4 * rank + 4])

    checkpoints, notes, start = Checkpoints(FOLDER / folder), [], time.monotonic()
    values = {"load": checkpoints.newest, "save": checkpoints.save, "note": notes.append,
              "open": checkpoints.open, **session}
    try:
        fitted = loop.fit(model, own, Session(rank=rank, world=2, **values), chosen.train,
                          full_batches=lambda step: batch(POINTS, step))
        end = f"step {fitted.step}"
    except Exception as error:
        end = f"{type(error).__name__}: {error}"
    told[name] = {"end": end, "notes": notes, "seconds": time.monotonic() - start,
                  "weights": workers.digest(model.state_dict())}
    dist.destroy_process_group()


def spoil(step, model, x):
    if step == 1:
        with torch.no_grad():
            next(model.parameters()).add_(1.0)


def round_off(step, model, x):
    if step == 1:
        with torch.no_grad():
            next(model.parameters()).mul_(1.0001)


def not_finite(step, model, x):
    if step == 1:
        x.fill_(float("nan"))


def raises(step, model, x):
    if step == 1:
        raise DataError("row 7 is damaged", "genflow data verify")


def stops(step, model, x):
    if step == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


def dies(step, model, x):
    if step == 1:
        (FOLDER / "1.json").write_text(json.dumps(told))
        os._exit(0)


train("other weights", "a", seed=3 + rank)
train("both", "b", steps=2)
shutil.copytree(FOLDER / "b", FOLDER / f"b{rank}")
train("one sees none", "b", load=(lambda: None) if rank else Checkpoints(FOLDER / "b").newest, open=None)
train("first sees none", "b", load=Checkpoints(FOLDER / "b").newest if rank else (lambda: None))
if rank == 1:
    weights = next((FOLDER / "b1").glob("*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
train("one is damaged", f"b{rank}")
train("a late directory", "b", load=(lambda: None) if rank else Checkpoints(FOLDER / "b").newest)
train("spoiled", "c", change=spoil)
train("rounded", "d", change=round_off)
train("not finite", "e", change=not_finite)


def full(step, write):
    raise OSError("no space left on device")


train("cannot save", "f", save=full)
if rank == 1:
    (FOLDER / "pid").write_text(str(os.getpid()))
train("stopped", "g", change=stops, timeout=2)
if rank == 0:
    os.kill(int((FOLDER / "pid").read_text()), signal.SIGCONT)
train("raised", "h", change=raises, timeout=2)
dist.init_process_group("gloo", init_method=f"file://{FOLDER}/adopt", rank=rank, world_size=2)
with workers.connected(rank, 2) as both:
    for name, other in {"a flag": torch.tensor(rank == 0), "a nan": torch.tensor([0.0, torch.nan][rank])}.items():
        own = {"w": torch.full((3,), 1 + 0.001 * rank), "nan": torch.tensor(torch.nan), "other": other}
        told[name] = [both.adopt(own), workers.digest(own)]
dist.destroy_process_group()
train("dead", "i", change=dies, timeout=20)
(FOLDER / f"{rank}.json").write_text(json.dumps(told))
os._exit(0)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers says at the end of every scenario."""
    folder = tmp_path_factory.mktemp("workers")
    two_workers(PROGRAM, folder)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_all_workers_start_with_the_weights_of_the_first(told: list[dict[str, Any]]) -> None:
    """They train to the end with equal weights, and one line says that they differed."""
    first, second = (worker["other weights"] for worker in told)
    assert first["end"] == second["end"] == "step 4"
    assert first["weights"] == second["weights"]
    assert "start weights differed by" in first["notes"][0]
    assert told[0]["both"]["notes"] == []


@pytest.mark.parametrize(("name", "message"), [
    ("one sees none", "worker 1 on {} sees no checkpoint, and worker 0 on {} sees a checkpoint of step 2"),
    ("first sees none", "worker 1 on {} sees a checkpoint of step 2 "),
    ("one is damaged", "worker 1 on {} sees no checkpoint, and worker 0 on {} sees a checkpoint of step 2"),
    ("spoiled", "the workers' weights differ by"),
    ("cannot save", "no space left on device"),
])  # fmt: skip
def test_a_difference_ends_both_workers(told: list[dict[str, Any]], name: str, message: str) -> None:
    """The error is the same on both, or names the other worker, and comes at once."""
    for worker in told:
        assert message.replace("{}", os.uname().nodename) in worker[name]["end"]
        assert worker[name]["seconds"] < 30


def test_a_worker_that_sees_a_checkpoint_late_opens_it_by_name(told: list[dict[str, Any]]) -> None:
    """Its list of checkpoints may be older than that of the first worker."""
    assert [worker["a late directory"]["end"] for worker in told] == ["step 4", "step 4"]


def test_rounding_is_removed_at_a_checkpoint(told: list[dict[str, Any]]) -> None:
    """Processors of two kinds round differently; from the checkpoint on the weights are equal again."""
    first, second = (worker["rounded"] for worker in told)
    assert first["end"] == second["end"] == "step 4"
    assert first["weights"] == second["weights"]


def test_flags_and_missing_numbers_are_compared(told: list[dict[str, Any]]) -> None:
    """A NaN on both is equal, and a NaN on one is no rounding; afterwards all bytes are those of the first worker."""
    for name in ("a flag", "a nan"):
        assert told[0][name] == told[1][name]
    assert 0.01 < told[0]["a flag"][0] < 1
    assert told[0]["a nan"][0] == float("inf")


def test_the_worker_whose_loss_is_not_finite_is_named(told: list[dict[str, Any]]) -> None:
    """Its data may be the cause."""
    for worker in told:
        assert "is not finite on worker 1 at step 2" in worker["not finite"]["end"]


@pytest.mark.parametrize("name", ["stopped", "raised", "dead"])
def test_a_worker_that_does_not_answer_is_named(told: list[dict[str, Any]], name: str) -> None:
    """The others wait as long as the process group's timeout, and some seconds."""
    assert told[0][name]["end"] == "WorkerError: worker 1 does not answer: it hangs, or it has died"
    assert told[0][name]["seconds"] < 20


def test_the_digest_depends_on_every_byte_and_name() -> None:
    """Also for tensors that are not contiguous, and of other types."""
    x = torch.arange(6.0).reshape(2, 3)
    values = [{"a": x}, {"b": x}, {"a": x + 1e-7}, {"a": x.half()}, {"a": x, "n": torch.tensor(1)}]
    values += [{"a": x.flip(0)}, {"a": x.flip(1)}, {"a": -x}, {"a": x, "n": torch.tensor(True)}]
    assert len({digest(each) for each in values}) == len(values)
    assert digest({"a": x.T.contiguous().T}) == digest({"a": x})
