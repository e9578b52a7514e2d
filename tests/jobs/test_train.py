"""Training as a job: the number of workers changes no loss, and a killed run resumes to the same bits."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import TESTS
from support.processes import descendants

from genflow.errors import GenflowError, ResourceError, SetupError
from genflow.recipe.compose import compose
from genflow.recipe.schema import Cluster
from genflow.storage.store import Store
from genflow.system import events, source_hash
from genflow.tracking.journal import curves, entries, journal_path
from genflow.training.checkpoint_folders import Checkpoints
from jobs import train

pytestmark = pytest.mark.usefixtures("without_mlflow")
TINY = {"data": {"name": "digits"}, "net": {"kind": "mlp", "width": 32, "depth": 1}, "sample": {"steps": 2}}
STEPS = 60


@pytest.fixture(scope="module")
def tiny(digits_store: Store) -> Store:
    return digits_store


def document(name: str, workers: int = 1, *, steps: int = STEPS, **settings: Any) -> dict[str, Any]:
    """A run of a tiny net; a batch of 15 does not divide into equal shares.

    The default optimizer is AdamW: Muon may use bfloat16 at any precision, and then a difference of 1e-7 from the order
    of sums becomes 5e-4.
    """
    settings = {"steps": steps, "batch": 15, "log_every": 5, "checkpoint_every": 10, "warmup": 0, **settings}
    layers = {"name": name, "train": {"precision": "fp32", "optimizer": "adamw", **settings}}
    recipe = compose("flow_matching", TINY, layers, {"cluster": {"workers": workers}})
    return {"recipe": recipe.model_dump(mode="json"), "inputs": {}}


def run(document: dict[str, Any]) -> dict[str, Any]:
    return train.main(document, lambda event, **fields: None)


def weights(store: Store, result: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint: weights, average and optimizer."""
    newest = Checkpoints(Path(result["path"]) / "checkpoints").newest()
    assert newest is not None
    files = ("weights", "ema", "optimizer")
    return {f"{f}/{k}": v for f in files for k, v in load_file(newest / f"{f}.safetensors").items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def undisturbed(ray_local: None, tiny: Store) -> Callable[[str, str], dict[str, Any]]:
    """The result of two workers that are not killed, by precision and optimizer."""
    made: dict[str, dict[str, Any]] = {}

    def make(precision: str, optimizer: str) -> dict[str, Any]:
        if precision not in made:
            made[precision] = run(document(f"calm-{precision}", 2, precision=precision, optimizer=optimizer))
        return made[precision]

    return make


@pytest.mark.ray
def test_workers_change_no_loss(undisturbed: Callable[[str, str], dict[str, Any]], tiny: Store) -> None:
    """One and two workers have the same losses for the same global batch, and end at the same weights."""
    two, one = undisturbed("fp32", "adamw"), run(document("one"))
    losses = [dict(curves(journal_path(tiny.root, r["run"]))["train/loss"]) for r in (one, two)]
    assert sorted(losses[0]) == list(range(5, STEPS + 1, 5))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    a, b = weights(tiny, one), weights(tiny, two)
    assert all(torch.allclose(a[k], b[k], rtol=1e-3, atol=1e-4) for k in a)
    assert (one["world"], two["world"]) == (1, 2)
    assert not (tiny.root / "ray").exists()


def test_the_journal_has_what_a_person_looks_for(tiny: Store) -> None:
    """Few parameters, the dataset with its digest, minutes at step 0, and a description with the newest samples."""
    done = run(document("told", steps=10))
    written = [entry for _, entry in entries(journal_path(tiny.root, done["run"]))]
    (parameters,) = [entry["params"] for entry in written if "params" in entry]
    assert len(parameters) <= 25
    assert parameters["family.kind"] == "flow_matching"
    (data,) = [entry["dataset"] for entry in written if "dataset" in entry]
    made = tiny.find("datasets", "digits")
    assert (data["name"], data["path"]) == ("digits", f"datasets/{made.id}")
    assert made.meta["facts"]["fingerprint"].startswith(data["digest"])
    assert data["profile"]["train"] == made.meta["facts"]["splits"]["train"]
    ((step, minutes),) = curves(journal_path(tiny.root, done["run"]), "training")["minutes"]
    assert step == 0
    assert minutes == pytest.approx(done["seconds"] / 60, abs=0.01)
    (described,) = [entry["description"] for entry in written if "description" in entry]
    assert described["headline"].startswith("10 steps in ")
    assert (tiny.root / described["picture"]).parent.name == "samples"
    assert f"genflow evaluate {done['run']}" in described["details"]


def test_a_training_with_one_worker_does_not_import_ray(tiny: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray and Ray Train would take a quarter of the time to the first step."""
    monkeypatch.setitem(sys.modules, "ray", None)  # an import raises ImportError
    assert run(document("without-ray", steps=2))["steps"] == 2


@pytest.mark.ray
@pytest.mark.parametrize(
    ("precision", "optimizer"), [("fp32", "adamw"), pytest.param("bf16", "muon", marks=pytest.mark.slow)]
)
def test_a_killed_worker_changes_no_bit(
    undisturbed: Callable[[str, str], dict[str, Any]], tiny: Store, precision: str, optimizer: str
) -> None:
    """After kill -9 of a worker all resume from the store's checkpoint, and end at the bits of undisturbed workers."""
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
def test_an_error_that_the_user_must_fix_is_not_retried(ray_local: None, tiny: Store, tmp_path: Path) -> None:
    """A SetupError in a worker ends the run at the first attempt, unchanged."""
    from jobs.runtime.train import worker_group

    recipe = document("lost")["recipe"]
    settings = {"store": str(tmp_path), "recipe": recipe, "dataset": "x", "run": "lost", "alone": False}
    with pytest.raises(SetupError, match="does not see the store"):
        worker_group.run_on_ray(settings, Cluster(workers=1, retries=1000), spread=False)


@pytest.mark.ray
def test_resources_that_the_machine_lacks_are_rejected(ray_local: None, tiny: Store) -> None:
    """A request for GPUs fails before any worker starts."""
    asked = document("greedy", 2)
    asked["recipe"]["cluster"]["gpus"] = 1
    with pytest.raises(ResourceError, match="2 workers need 1 CPU and 1 GPU each"):
        run(asked)


def test_a_stopped_or_killed_run_resumes(tiny: Store) -> None:
    """Ctrl-C and SIGTERM save and exit with 130 and 143; after kill -9 the same command ends at the same bits."""
    endless = document("stubborn", steps=400, log_every=1, checkpoint_every=100)
    codes, steps = [], []
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        exit_code, step = run_until_signal(endless, tiny, signum)
        codes.append(exit_code)
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
    """Run the job in a process, send a signal after 20 steps; return the exit code and the last step."""
    recipe = store.root.parent / "recipe.yaml"
    recipe.write_text(json.dumps(document), encoding="utf-8")
    command = [sys.executable, "-P", TESTS / "support/without_mlflow.py", "train", recipe]
    environment = os.environ | {"PYTHONPATH": str(source_hash.resources_dir())}
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, encoding="utf-8")
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
    exit_code = process.wait()
    assert seen in (0, exit_code)
    return exit_code, step


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_leaves_no_process(tiny: Store) -> None:
    """After kill -9 of a job with two workers no process is left, and the same command resumes."""
    recipe = tiny.root.parent / "two.yaml"
    recipe.write_text(json.dumps(document("orphans", 2, steps=2000, checkpoint_every=50)), encoding="utf-8")
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


def wait_for(condition: Callable[[], Any], seconds: float = 400) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "timed out"
        time.sleep(0.05)


def workers_below(pid: int) -> list[int]:
    """The Ray Train workers among the descendants of a process."""
    found = []
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            if b"RayTrainWorker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def test_explain_finds_the_cause() -> None:
    """It returns genflow's own error from inside Ray's, names a lack of memory, and makes one line of other errors."""
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
