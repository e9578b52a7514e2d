"""Commands on a read-only store, on a full disk, at the limit on the size of files, and on a broken disk."""

import contextlib
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import Command, in_this_process
from support.mounts import fill, read_only, small_disk
from support.trained_run import trained_run

from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.evaluation.features import classifier
from genflow.recipe.compose import compose
from genflow.recipe.schema import Data
from genflow.storage.store import Store
from genflow.tracking import model_registry, sync
from genflow.tracking.journal_replay import SendResult
from jobs import compare, evaluate, reflow, serve, train
from jobs import prepare as prepare_job
from jobs.runtime.entrypoint import run_and_report

SMALL = {"evaluate": {"samples": 60, "sweep_samples": 30, "steps": [1], "likelihood": 8, "bootstrap": 3}}
DATA = {"source": "ring8", "samples": 400, "val": 0.3}


def recipe(**sections: Any) -> dict[str, Any]:
    return compose("vae" if "train" in sections else None, SMALL, sections).model_dump(mode="json")


def jobs(name: str = "ring8") -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Jobs that start no Ray. The artifacts of the first three are in the template."""
    training = {"data": {"name": name}, "train": {"steps": 4, "batch": 16, "checkpoint_every": 4}}
    other = {**training, "train": {**training["train"], "steps": 5}}
    new = {"recipe": recipe(evaluate={"samples": 61}), "inputs": {"runs": ["vae"]}}
    old = {"recipe": recipe(), "inputs": {"runs": ["vae"]}}
    return {
        "prepare": (prepare_job.main, {"recipe": recipe(data=DATA), "inputs": {}}),
        "evaluate": (evaluate.main, old),
        "compare": (compare.main, old),
        "prepare another": (prepare_job.main, {"recipe": recipe(data={**DATA, "samples": 401}), "inputs": {}}),
        "train": (train.main, {"recipe": recipe(**other), "inputs": {}}),
        "evaluate again": (evaluate.main, new),
        "compare others": (compare.main, new),
        "reflow": (reflow.main, {"recipe": recipe(), "inputs": {"run": "flow"}}),
    }


CACHED = ("prepare", "evaluate", "compare")
WRITING = ("prepare another", "train", "evaluate again", "compare others")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a dataset, two runs, an evaluation and a report."""
    from support.without_mlflow import silence

    store = Store(tmp_path_factory.mktemp("disks") / "store")
    with pytest.MonkeyPatch.context() as patch:
        silence(patch.setattr)
        patch.setenv("GENFLOW_STORE", str(store.root))
        patch.setattr(classifier, "MAX_STEPS", 5)
        artifact, _ = prepare(store, Data(**DATA), in_process, lambda event, **fields: None)
        trained_run(store, Dataset.open(artifact), "vae", name="vae")
        trained_run(store, Dataset.open(artifact), "flow_matching", name="flow")
        main, document = jobs()["compare"]
        main(document, lambda event, **fields: None)
    return store.root


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the store of this test; the current folder is another one. Preparing starts no Ray."""
    folder, here = tmp_path / "disk", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("GENFLOW_STORE", str(folder / "store"))
    monkeypatch.setattr(classifier, "MAX_STEPS", 5)
    monkeypatch.setattr(prepare_job, "ray_workers", in_process)
    return folder


@pytest.fixture
def genflow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return in_this_process(monkeypatch, capsys)


def run_job(name: str) -> tuple[int, str]:
    """The exit code of a job, and the message of its error."""
    found: list[str] = []

    def emit(event: str, **fields: Any) -> None:
        found.extend([fields["message"]] if event == "error" else [])

    main, document = jobs()[name]
    return run_and_report(main, document, emit), "".join(found)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.usefixtures("without_mlflow")
def test_a_read_only_store(place: Path, template: Path, genflow: Command, tmp_path: Path) -> None:
    """Commands that read work. A command that writes ends with one line and exit code 3, and changes nothing."""
    shutil.copytree(template, place / "store")
    before = names(place)
    with read_only(place):
        for command in ("runs ls", "runs show vae", "data ls", "data show ring8", "recommend", "endpoints ls",
                        "sample vae -n 2 -o grid.png", "export vae -o exported"):  # fmt: skip
            code, _, err = genflow(*command.split())
            assert code == 0, (command, err)
        code, out, err = genflow("doctor")
        assert code == 3
        assert "not writable" in out
        for command in ("runs rm vae --yes", "promote vae", f"sample vae -n 2 -o {place}/x.png",
                        f"export vae -o {place}/x"):  # fmt: skip
            code, _, err = genflow(*command.split())
            assert (code, "error: cannot write" in err, "Read-only" in err) == (3, True, True), (command, err)
            assert "Traceback" not in err
        for name in CACHED:
            assert run_job(name) == (0, ""), name
        for name in (*WRITING, "reflow"):
            code, message = run_job(name)
            assert code == 3, (name, message)
            assert message.startswith(f"cannot write {place}"), name
            assert message.endswith("Read-only file system"), name
        warnings: list[str] = []
        serve._record({"name": "vae"}, lambda event, **fields: warnings.append(fields["message"]))
        assert "does not list this endpoint" in warnings[0]
    assert names(place) == before


def test_journals_of_a_read_only_store(place: Path, template: Path) -> None:
    """`genflow ui` shows what MLflow has of a read-only store, and says that the rest cannot be sent."""
    shutil.copytree(template, place / "store")
    store = Store()
    with read_only(place):
        sent = sync.replay(store, store.find("runs", "vae").id)
    assert "Read-only file system" in sent.problem
    assert not sent.complete


@contextlib.contextmanager
def full(place: Path) -> Iterator[None]:
    filler = fill(place)
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def limited(place: Path) -> Iterator[None]:
    """Files have at most 16 bytes; the limit is of this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def broken(place: Path) -> Iterator[None]:
    """The disk reports an error when data are flushed to it."""

    def fsync(descriptor: int) -> None:
        raise OSError(5, os.strerror(5))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.mark.usefixtures("without_mlflow")
@pytest.mark.parametrize(
    ("fault", "message"),
    [(full, "disk full"), (limited, "the limit on the size of a file"), (broken, "the disk reports an error")],
)
def test_a_disk_that_takes_no_data(fault: Any, message: str, place: Path, template: Path, genflow: Command) -> None:
    """Each command ends with one line that names the path, exit code 5 and no half-written artifact; then it works."""
    with small_disk(place, "40m"):
        shutil.copytree(template, place / "store")
        before = {path.parent for path in place.rglob("manifest.json")}
        for name in WRITING:
            with fault(place):
                code, problem = run_job(name)
            assert code == 5, (name, problem)
            assert problem.startswith(message), (name, problem)
            assert str(place) in problem, (name, problem)
            assert {path.parent for path in place.rglob("manifest.json")} == before, name
            assert not [path for path in names(place) if ".tmp-" in path], name
        for command in (f"sample vae -n 2 -o {place}/x.png", f"export vae -o {place}/x"):
            with fault(place):
                code, _, err = genflow(*command.split())
            assert (code, f"error: {message}" in err, str(place) in err) == (5, True, True), (command, err)
            assert "Traceback" not in err
            assert genflow(*command.split())[0] == 0, command
        for name in WRITING:
            assert run_job(name) == (0, ""), name


def test_a_full_disk_is_no_failure_of_mlflow(
    place: Path, template: Path, genflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`promote` on a full disk ends with exit code 5, although MLflow packs the model in a process of its own."""
    shutil.copytree(template, place / "store")
    problem = "[Errno 28] No space left on device"
    monkeypatch.setattr(model_registry, "replay", lambda *_, **__: SendResult(problem=problem))
    code, _, err = genflow("promote", "vae")
    assert code == 5
    assert f"error: disk full while writing {place}" in err
