"""Training as a job: the number of workers changes no loss, and a run that is killed goes on to the same bits."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.processes import descendants

from genflow.data.prepare import here, prepare
from genflow.errors import GenflowError, ResourceError, SetupError
from genflow.recipe.compose import compose
from genflow.recipe.schema import Cluster, Data
from genflow.storage.store import Store
from genflow.system import events, source_hash
from genflow.tracking import sender, sync
from genflow.tracking.journal import curves, journal_path
from genflow.training.checkpoint import Checkpoints
from jobs import train

TINY = {"data": {"name": "digits"}, "net": {"kind": "mlp", "width": 32, "depth": 1}, "sample": {"steps": 2}}
STEPS = 60


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with digits that jobs of this process use."""
    store = Store(tmp_path_factory.mktemp("train") / "store")
    prepare(store, Data(source="digits"), here, lambda event, **fields: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENFLOW_STORE", str(store.root))
        yield store


@pytest.fixture(autouse=True)
def no_sender(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sending to MLflow has tests of its own, and costs each run here three CPU seconds."""
    monkeypatch.setattr(sync, "prepare", lambda store: "")
    monkeypatch.setattr(sync, "catch_up", lambda store, run_id: sync.Sent(complete=True))
    monkeypatch.setattr(sender.Sender, "start", lambda self: None)
    monkeypatch.setattr(sender.Sender, "finish", lambda self, deadline_s: True)


def document(name: str, workers: int = 1, *, steps: int = STEPS, **settings: Any) -> dict[str, Any]:
    """A run of a tiny net; a batch of 15 does not fall into equal shares.

    Muon may round to bfloat16 on its way, whatever the precision, which makes 1e-7 of the order of sums 5e-4.
    """
    settings = {"steps": steps, "batch": 15, "log_every": 5, "checkpoint_every": 10, "warmup": 0, **settings}
    layers = {"name": name, "train": {"precision": "fp32", "optimizer": "adamw", **settings}}
    recipe = compose("flow_matching", TINY, layers, {"cluster": {"workers": workers}})
    return {"recipe": recipe.model_dump(mode="json"), "inputs": {}}


def run(document: dict[str, Any]) -> dict[str, Any]:
    return train.main(document, lambda event, **fields: None)


def weights(store: Store, result: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All that the last checkpoint holds: weights, average and optimizer."""
    newest = Checkpoints(Path(result["path"]) / "checkpoints").newest()
    assert newest is not None
    files = ("weights", "ema", "optimizer")
    return {f"{f}/{k}": v for f in files for k, v in load_file(newest / f"{f}.safetensors").items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def undisturbed(ray_local: None, tiny: Store) -> Callable[[str, str], dict[str, Any]]:
    """The result of two workers whom nobody disturbs, by precision and optimizer."""
    made: dict[str, dict[str, Any]] = {}

    def make(precision: str, optimizer: str) -> dict[str, Any]:
        if precision not in made:
            made[precision] = run(document(f"calm-{precision}", 2, precision=precision, optimizer=optimizer))
        return made[precision]

    return make


@pytest.mark.ray
def test_workers_change_no_loss(undisturbed: Callable[[str, str], dict[str, Any]], tiny: Store) -> None:
    """Two workers and one follow the same curve of the same global batch, and end at the same weights."""
    two, one = undisturbed("fp32", "adamw"), run(document("one"))
    losses = [dict(curves(journal_path(tiny.root, r["run"]))["train/loss"]) for r in (one, two)]
    assert sorted(losses[0]) == list(range(5, STEPS + 1, 5))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    a, b = weights(tiny, one), weights(tiny, two)
    assert all(torch.allclose(a[k], b[k], rtol=1e-3, atol=1e-4) for k in a)
    assert (one["world"], two["world"]) == (1, 2)
    assert not (tiny.root / "ray").exists()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("precision", "optimizer"), [("fp32", "adamw"), pytest.param("bf16", "muon", marks=pytest.mark.slow)]
)
def test_killed_worker(
    undisturbed: Callable[[str, str], dict[str, Any]], tiny: Store, precision: str, optimizer: str
) -> None:
    """A worker dies by -9; all go on from the store's checkpoint, and end at the bits of undisturbed workers."""
    expected = undisturbed(precision, optimizer)
    doomed = document(f"doomed-{precision}", 2, precision=precision, optimizer=optimizer)
    folder = tiny.root / "runs" / f"doomed-{precision}-{expected['run'].rpartition('-')[2]}"
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: Checkpoints(folder / "checkpoints").steps())
        killed.append(workers_below(os.getpid())[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(doomed)
    killer.join()
    assert killed
    assert result["path"] == str(folder)
    assert equal(weights(tiny, result), weights(tiny, expected))


@pytest.mark.ray
def test_error_of_a_worker_is_not_tried_again(ray_local: None, tiny: Store, tmp_path: Path) -> None:
    """What a person has to mend comes out of a worker as it is, at the first attempt."""
    from jobs.runtime.train import worker_group

    recipe = document("lost", 2)["recipe"]
    settings = {"store": str(tmp_path), "recipe": recipe, "dataset": "x", "run": "lost", "alone": False}
    with pytest.raises(SetupError, match="does not see the store"):
        worker_group.run_on_ray(settings, Cluster(workers=2, retries=1000), spread=False)


@pytest.mark.ray
def test_more_than_the_machine_has(ray_local: None, tiny: Store) -> None:
    """GPUs that nobody has are refused before any worker starts."""
    asked = document("greedy", 2)
    asked["recipe"]["cluster"]["gpus"] = 1
    with pytest.raises(ResourceError, match="2 workers need 1 CPU and 1 GPU each"):
        run(asked)


def test_stopped_killed_and_gone_on_with(tiny: Store) -> None:
    """Ctrl-C and SIGTERM save and exit with 130 and 143; after a -9 the same command ends at the same bits."""
    endless = document("stubborn", steps=400, log_every=1, checkpoint_every=100)
    codes, steps = [], []
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        code_, step = run_until_signal(endless, tiny, signum)
        codes.append(code_)
        steps.append(step)
    assert codes == [130, 143, -signal.SIGKILL]
    assert steps == sorted(steps)
    expected = run(document("calm", steps=400, log_every=1, checkpoint_every=100))
    result = run(endless)
    assert not result["cached"]
    assert equal(weights(tiny, result), weights(tiny, expected))
    assert run(endless)["cached"]
    assert train.find(endless) == run(endless)


def run_until_signal(document: dict[str, Any], store: Store, signum: signal.Signals) -> tuple[int, int]:
    """Run the job in a process, send it a signal after some steps; its exit code and the step it got to."""
    recipe = store.root.parent / "recipe.yaml"
    recipe.write_text(json.dumps(document))
    environment = os.environ | {"PYTHONPATH": str(source_hash.resources_dir()), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.train", str(recipe)], env=environment, text=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    seen, step, first = 0, 0, 0
    for line in process.stdout:
        if (event := events.parse(line)) and event["event"] == "progress":
            step = event["step"]
            first = first or step
            if step - first == 20:
                process.send_signal(signum)
        elif event and event["event"] == "error":
            assert event["message"] == "interrupted"
            seen = event["code"]
    code_ = process.wait()
    assert seen in (0, code_)
    return code_, step


@pytest.mark.ray
@pytest.mark.slow
def test_killed_driver_leaves_nothing(tiny: Store) -> None:
    """A job of two workers that dies by -9 leaves no process, and the same command goes on."""
    recipe = tiny.root.parent / "two.yaml"
    recipe.write_text(json.dumps(document("orphans", 2, steps=2000, checkpoint_every=50)))
    process = subprocess.Popen([sys.executable, "-m", "jobs.train", str(recipe)], stdout=subprocess.DEVNULL,
                               env=os.environ | {"PYTHONPATH": str(source_hash.resources_dir())})
    runs = tiny.root / "runs"
    wait_for(lambda: list(runs.glob("orphans-*/checkpoints/step_*/manifest.json")))
    below = descendants(process.pid)
    assert workers_below(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), seconds=180)
    result = run(document("orphans", 2, steps=2000, checkpoint_every=50))
    assert result["steps"] == 2000


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it does not happen"
        time.sleep(0.05)


def workers_below(pid: int) -> list[int]:
    """Ray Train's workers among them."""
    found = []
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            if b"RayTrainWorker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def test_what_ended_the_workers() -> None:
    """An error deep inside Ray's own comes out; memory is named; anything else is one line."""
    pytest.importorskip("ray.train")
    from ray.exceptions import OutOfMemoryError
    from ray.train import WorkerGroupError

    from jobs.runtime.train.worker_group import explain

    mine = ResourceError("disk full", "free some")
    outer = RuntimeError("outer")
    outer.__cause__ = WorkerGroupError("x", {0: ValueError("a"), 1: mine})
    cluster = Cluster(workers=2)
    assert explain(outer, cluster) is mine
    assert isinstance(explain(WorkerGroupError("x", {1: OutOfMemoryError("x")}), cluster), ResourceError)
    other = explain(WorkerGroupError("x", {1: ValueError("first\nsecond")}), cluster)
    assert type(other) is GenflowError
    assert other.message == "the workers died 4 times: ValueError: first"
