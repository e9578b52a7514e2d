"""Jobs on a real Ray cluster: a head and a second raylet, with token authentication."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from support import TESTS
from support.processes import descendants

from genflow.data.prepare import in_process, prepare
from genflow.errors import ClusterError, ResourceError, SetupError, Stopped, UsageError
from genflow.launch import remote
from genflow.launch.ray_dashboard import Dashboard
from genflow.recipe.compose import compose
from genflow.recipe.schema import Data, Recipe
from genflow.storage.store import Store
from genflow.system import ports
from genflow.training.checkpoint_folders import Checkpoints

pytestmark = pytest.mark.ray
TOKEN = "5ec4e7" * 10


@dataclass
class Head:
    """A running cluster."""

    address: str
    process: "subprocess.Popen[str]"
    store: Store


@dataclass
class Heard:
    """Collects the events of a command."""

    events: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def notes(self) -> str:
        return "\n".join(e["message"] for e in self.events if e["event"] in ("note", "warning"))


@pytest.fixture(scope="module")
def head(mlflow_database: Path) -> Iterator[Head]:
    """Two nodes with one CPU each, so that two workers need both; in a short path, which Ray's sockets require."""
    with TemporaryDirectory(prefix="gf-", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        token = Path(folder) / "token"
        token.touch(0o600)
        token.write_text(TOKEN, encoding="utf-8")
        port = ports.free_port()
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        # without the variables of this process's own Ray
        settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        settings |= {"RAY_AUTH_TOKEN_PATH": str(token)}
        settings |= {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "OMP_NUM_THREADS": "1"}
        settings |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
        settings |= {"RAY_worker_niceness": "0"}
        settings |= {"GENFLOW_STORE": "", "PYTHONPATH": ""}
        process = subprocess.Popen(
            [sys.executable, TESTS / "support/raylets.py", folder, str(port), str(ports.free_port())],
            env=settings, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            store = Store(Path(folder) / "store")
            store.root.mkdir(exist_ok=True)
            shutil.copy(mlflow_database, store.root)
            prepare(store, Data(source="digits"), in_process, lambda event, **fields: None)
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: answers(address))
            yield Head(address, process, store)
        finally:
            process.stdin.close()
            process.wait(60)


def answers(address: str) -> bool:
    with contextlib.suppress(ClusterError):
        return len(Dashboard.at(address).nodes()) == 2
    return False


def wait_for(condition: Callable[[], Any], seconds: float = 400) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"the condition is not true after {seconds:g} s"
        time.sleep(0.1)


def recipe(name: str, workers: int, **settings: Any) -> Recipe:
    net = {"kind": "mlp", "width": 16, "depth": 1}
    train = {"steps": 40, "batch": 16, "log_every": 10, "checkpoint_every": 20, **settings}
    layers = {"name": name, "data": {"name": "digits"}, "net": net, "train": train, "cluster": {"workers": workers}}
    return compose("flow_matching", layers)


def send(head: Head, recipe: Recipe, heard: Heard | None = None, **options: Any) -> dict[str, Any]:
    document = {"recipe": recipe.model_dump(mode="json"), "inputs": {"run": run_id(head, recipe)}}
    return remote.run_on_cluster("train", document, head.store, heard or Heard(), address=head.address, **options)


def run_id(head: Head, recipe: Recipe) -> str:
    from genflow import runs

    return runs.plan(head.store, recipe).id


def test_two_workers_on_two_nodes(head: Head) -> None:
    """A run on both nodes is followed to its result, is found finished later, and no file or output has the token."""
    heard = Heard()
    done = send(head, recipe("spread", 2), heard)
    assert (done["schema"], done["steps"], done["world"], done["cached"]) == ("genflow.train/1", 40, 2, False)
    assert head.store.get("runs", done["run"])
    assert f"{head.address}/#/jobs/{done['run']}-1" in heard.notes()
    progress = [e for e in heard.events if e["event"] == "progress"]
    assert [e["step"] for e in progress] == [10, 20, 30, 40]
    assert send(head, recipe("spread", 2))["cached"]
    jobs = remote.jobs_list(head.address)
    assert [(j["id"], j["stage"], j["status"]) for j in jobs[:2]] == [
        (f"{done['run']}-{n}", "train", "SUCCEEDED") for n in (2, 1)
    ]
    log = "".join(remote.jobs_logs(head.address, f"{done['run']}-1"))
    assert log == "".join(remote.jobs_logs(head.address, f"{done['run']}-1", follow=True))
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    # the store with MLflow's database, and the files of both nodes' Rays: logs, job information, the unpacked bundle
    rays = [head.store.root.parent / node for node in "ab"]
    files = [file for folder in (head.store.root, *rays) for file in folder.rglob("*") if file.is_file()]
    assert [str(file) for file in files if TOKEN.encode() in file.read_bytes()] == []
    for text in (urllib.request.urlopen(request).read().decode(), log, json.dumps(heard.events)):
        assert TOKEN not in text


def test_the_checks_before_a_job(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks include the answers of every node, which are cached; the probe is not in the list of jobs."""
    monkeypatch.setenv("GENFLOW_STORE", str(head.store.root))
    before = len(remote.jobs_list(head.address))
    every = list(remote.checks(head.address))
    assert [check.name for check in every if not check.ok] == []
    assert {check.name: check.found for check in every}["nodes: store"] == f"every node has {head.store.root}"
    ran = len(Dashboard.at(head.address).request("/api/jobs/"))
    assert list(remote.checks(head.address)) == every
    assert len(Dashboard.at(head.address).request("/api/jobs/")) == ran
    assert len(remote.jobs_list(head.address)) == before


class Impatient(Heard):
    """Acts like a user who presses Ctrl-C at the first progress event."""

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            raise KeyboardInterrupt


@dataclass
class Follower:
    """A command that follows a run, in its own thread."""

    head: Head
    recipe: Recipe
    heard: Heard = field(default_factory=Heard)
    end: BaseException | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._follow)
        self.thread.start()

    def _follow(self) -> None:
        try:
            send(self.head, self.recipe, self.heard)
        except BaseException as error:
            self.end = error


def endless(head: Head, name: str) -> tuple[Recipe, str, Checkpoints]:
    """A run on one worker that does not end, with its id and its checkpoints."""
    long = recipe(name, 1, steps=10**6, checkpoint_every=200, log_every=100)
    id = run_id(head, long)
    return long, id, Checkpoints(head.store.folder("runs", id) / "checkpoints")


def test_followed_and_stopped(head: Head) -> None:
    """A second command follows the running job; Ctrl-C does not stop it; a stop saves a checkpoint and ends both."""
    long, id, checkpoints = endless(head, "stopped")
    first = Follower(head, long)
    wait_for(checkpoints.steps)
    left = send(head, long, detach=True)
    assert (left["schema"], left["job"]) == ("genflow.job/1", f"{id}-1")
    left = send(head, long, Impatient())
    assert (left["job"], left["status"]) == (f"{id}-1", "RUNNING")
    second = Follower(head, long)
    wait_for(lambda: any(e["event"] == "progress" for e in second.heard.events))
    assert f"{id}-1 is already running" in second.heard.notes()
    assert remote.jobs_stop(head.address, id)["status"] == "STOPPED"
    for follower in (first, second):
        follower.thread.join()
        assert type(follower.end) is Stopped
    assert not head.store.get("runs", id)
    assert checkpoints.newest()
    with pytest.raises(UsageError, match="is not running; its status is STOPPED"):
        remote.jobs_stop(head.address, id)


@pytest.mark.slow
def test_two_workers_save_when_they_are_stopped(head: Head) -> None:
    """When stopped, both workers end at the same step and save there, although no checkpoint is due."""
    long = recipe("together", 2, steps=10**6, checkpoint_every=10**5, log_every=10)
    id = run_id(head, long)
    checkpoints = Checkpoints(head.store.folder("runs", id) / "checkpoints")
    command = Follower(head, long)
    wait_for(lambda: any(e["event"] == "progress" for e in command.heard.events), seconds=300)
    assert not checkpoints.steps()
    assert remote.jobs_stop(head.address, id)["status"] == "STOPPED"
    command.thread.join()
    assert type(command.end) is Stopped
    saved = checkpoints.newest()
    assert saved
    assert f"saved at step {int(saved.name[5:])}" in command.heard.notes()


@pytest.mark.slow
def test_killed_driver(head: Head) -> None:
    """If the driver is killed by SIGKILL, the command starts the job again, which resumes from its checkpoint."""
    long, id, checkpoints = endless(head, "killed")
    command = Follower(head, long)
    wait_for(checkpoints.steps)
    os.kill(driver_below(head.process.pid), signal.SIGKILL)
    wait_for(lambda: f"jobs/{id}-2" in command.heard.notes())
    reached = int(checkpoints.steps()[-1].name[5:])
    assert "exit code" in command.heard.notes()
    wait_for(lambda: int(checkpoints.steps()[-1].name[5:]) > reached)
    remote.jobs_stop(head.address, id)
    command.thread.join()
    assert type(command.end) is Stopped


def driver_below(pid: int) -> int:
    """The process of a submitted job below a process."""
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"python\0-m\0jobs.train"):
                return child
    raise AssertionError("no driver")


@pytest.mark.slow
def test_a_pipeline(head: Head) -> None:
    """The stages of a pipeline find presets and the artifacts of other stages on the cluster."""
    train = {"job": "train", "preset": "flow_matching", "data": "ring", "net": {"width": 16}, "train": {"steps": 20}}
    stages = {"ring": {"job": "prepare", "data": {"source": "ring8", "samples": 500}}, "flow": train}
    document = {"pipeline": {"name": "tiny", "stages": stages}}
    done = remote.run_on_cluster("pipeline", document, head.store, Heard(), address=head.address)
    assert [stage["job"] for stage in done["stages"]] == ["prepare", "train"]
    assert head.store.get("runs", done["stages"][1]["run"])


def test_a_module_that_the_cluster_lacks(head: Head) -> None:
    """The error of a job with a missing module names it and the fix, and the job is not started again."""
    with pytest.raises(SetupError, match=r"has no module jobs\.nothing") as error:
        remote.run_on_cluster("nothing", {"recipe": {}}, head.store, Heard(), address=head.address)
    assert "first on PATH" in error.value.hint


def test_more_than_the_cluster_has(head: Head) -> None:
    """Three workers on two CPUs, or any GPU, are rejected before anything is sent."""
    before = len(remote.jobs_list(head.address))
    for cluster, line in (
        ({"workers": 3}, "3 workers need 1 CPU each, but the cluster's 2 nodes with 2 CPU, 0 GPU can run 2"),
        ({"cpus": 2}, "a worker needs 2 CPU"),
        ({"gpus": 1}, "a worker needs 1 CPU and 1 GPU"),
    ):
        with pytest.raises(ResourceError, match=line):
            send(head, recipe("greedy", 1).replace(cluster=cluster))
    assert len(remote.jobs_list(head.address)) == before


def test_tokens(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong token and a missing token give different one-line errors, without the token."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong" * 12)
    with pytest.raises(ClusterError, match="rejects the token from RAY_AUTH_TOKEN") as error:
        remote.jobs_list(head.address)
    assert "wrong" not in error.value.message + error.value.hint
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match="requires a token, and this machine has none") as error:
        send(head, recipe("spread", 2))
    assert str(tmp_path / "none") in error.value.hint


def test_no_such_job(head: Head) -> None:
    """The error about an unknown job lists the existing jobs."""
    with pytest.raises(UsageError, match="job 'unknown' does not exist; jobs on the cluster:"):
        list(remote.jobs_logs(head.address, "unknown"))


def test_files_of_one_machine_are_rejected(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An MLflow database in a local file is rejected for two nodes; a password in MLflow's URI is always rejected."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(SetupError, match="the cluster has 2 nodes"):
        send(head, recipe("spread", 2))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:5000")
    with pytest.raises(UsageError, match="contains a password") as error:
        send(head, recipe("spread", 2))
    assert "secret" not in error.value.message + error.value.hint
