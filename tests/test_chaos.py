"""A short version of `make chaos`: one family on one worker, killed once; and tests of the comparison itself."""

import importlib.util
import json
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from genflow.errors import GenflowError, ResourceError, SetupError, is_out_of_memory
from genflow.launch.local import failure
from genflow.storage.files import explain_disk_errors

spec = importlib.util.spec_from_file_location("chaos", ROOT / "benchmarks" / "chaos.py")
assert spec is not None
assert spec.loader is not None
chaos: Any = importlib.util.module_from_spec(spec)
sys.modules["chaos"] = chaos
spec.loader.exec_module(chaos)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Any:
    """The initial store; without the kinds whose runs start from another run."""
    folder = tmp_path_factory.mktemp("chaos")
    (folder / "template").mkdir()
    shutil.copy(mlflow_database, folder / "template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chaos, "kinds", list)
        return chaos.template(folder)


@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_family_that_is_killed(made: Any, kills: int) -> None:
    """Weights, EMA, optimizer state and MLflow's metrics equal those of a run without kills."""
    outcome = chaos.chaos(made, "flow_matching", workers=1, kills=kills, seed=kills, steps=60)
    assert outcome.violations == []
    assert outcome.attempts >= 1


def trained_run(made: Any, folder: Path) -> tuple[Any, str]:
    store = chaos.Store(shutil.copytree(made.root, folder / "store"))
    recipe = chaos.recipe_file(folder / "x.yaml", "vae", 1, "vae", 12)
    assert chaos.command(store, recipe, "vae").wait() == 0
    return store, json.loads(recipe.with_suffix(".json").read_text(encoding="utf-8"))["run"]


@pytest.mark.slow
def test_the_comparison_detects_violations(made: Any, tmp_path: Path) -> None:
    """A missing metric, a duplicate, a changed value and a half-written folder are each reported."""
    calm, run = trained_run(made, tmp_path)
    folder = shutil.copytree(calm.root, tmp_path / "other")
    store, outcome = chaos.Store(folder), chaos.Outcome("vae", 1, 0)
    chaos.compare(calm, store, run, outcome)
    assert outcome.violations == []
    newest = chaos.Checkpoints(folder / "runs" / run / "checkpoints").newest()
    (newest.parent / "step_9.tmp-1").mkdir()
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("delete from metrics where key = 'train/loss' and step = 3")
        database.execute("update metrics set value = value + 1 where key = 'train/loss' and step = 4")
        database.execute("insert into metrics select key, value, timestamp + 1, run_uuid, step, is_nan from metrics "
                         "where key = 'train/loss' and step = 5")  # fmt: skip
    chaos.compare(calm, store, run, outcome)
    words = " ".join(outcome.violations)
    for sign in ("1 metrics are twice", "1 metrics are not in MLflow", "1 metrics differ", "left half-written"):
        assert sign in words


def test_out_of_memory_and_disk_errors_are_recognised() -> None:
    """The errors of Python, torch, Ray and safetensors are recognised and give one line each."""

    class OutOfMemoryError(RuntimeError):
        """Has the name that torch and Ray use."""

    cpu = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    assert all(map(is_out_of_memory, (MemoryError(), OutOfMemoryError("x"), cpu)))
    assert not is_out_of_memory(RuntimeError("x"))
    with pytest.raises(ResourceError, match="disk full while writing there"), explain_disk_errors(Path("there")):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SetupError, match="cannot write there: Read-only"), explain_disk_errors(Path("there")):
        raise RuntimeError("I/O error (os error 30)")


def test_a_job_that_the_kernel_ends() -> None:
    """The command reports the probable cause, memory, and what to do."""
    error = failure(None, -9)
    assert type(error) is GenflowError
    assert "memory" in error.message
    assert "run the same command again" in error.hint


def test_the_error_names_the_failed_worker() -> None:
    """The error names the worker that hangs or died, not those whose collective failed because of it."""
    pytest.importorskip("ray.train")
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

    from jobs.runtime.train.worker_group import failed_workers

    other = RuntimeError("Connection closed by peer")
    assert failed_workers({0: other, 1: WorkerHealthCheckTimeoutError("x")}) == "worker 1 hangs"
    assert failed_workers({0: WorkerHealthCheckFailedError("x", other), 1: other}) == "worker 0 died"
    assert failed_workers({0: MemoryError()}) == "worker 0 ran out of memory"


def test_partial_files_of_a_killed_attempt_are_deleted(prepared: Any, store: Any) -> None:
    """The next attempt deletes a partial picture and a partial checkpoint folder. `make chaos` found the first."""
    from support.small import recipe

    from genflow import runs

    data = prepared("ring8", samples=200)
    run = runs.plan(store, recipe("vae", data.facts, "mlp", data={"name": data.artifact.name}))
    folder = store.folder("runs", run.id)
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / ".step_00000222.png.tmp-32288-3c4521").write_bytes(b"half")
    (folder / "checkpoints" / "step_00000222.tmp-1-a").mkdir(parents=True)
    (folder / "checkpoints" / "step_00000222.tmp-1-a" / "weights.safetensors").write_bytes(b"half")
    runs.create_folder(store, run)
    assert list(folder.rglob("*.tmp-*")) == []
    assert (folder / "recipe.yaml").is_file()
