"""The process that draws: it draws what the engine does, and neither outlives its replica nor hangs unseen."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from genflow.engine import Engine
from genflow.errors import DataError
from genflow.serving import worker
from genflow.serving.entries import Entry
from genflow.serving.worker import Batch, Frame, Worker
from genflow.store import Store

Shelved = tuple[Store, list[Entry]]


@pytest.fixture(scope="module")
def drawing() -> Iterator[Worker]:
    made = Worker(2**30)
    yield made
    made.close()


def batch(entry: Entry, **more: object) -> Batch:
    options = {"steps": 4} if entry.name == "flow" else {}
    return Batch(entry, "samples", options, [3, 4], [1, 2], **more)  # type: ignore[arg-type]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


def ignores(pid: int, signum: signal.Signals) -> bool:
    mask = re.search(r"^SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(mask and int(mask[1], 16) >> (signum - 1) & 1)


def gone(pid: int) -> bool:
    """Whether a process has ended, within seconds."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_it_draws_what_the_engine_draws(drawing: Worker, shelf_store: Shelved) -> None:
    """And says so at every evaluation; frames are sent to those alone who watch."""
    store, (flow, *_) = shelf_store
    beats: list[int] = []
    frames: list[Frame] = []
    drawn = drawing.draw(batch(flow, watched=True), lambda: beats.append(1), frames.append)
    own = Engine.load(store.find("runs", flow.run)).draw([3, 4], [1, 2], steps=4)
    np.testing.assert_array_equal(drawn.images, own.images)
    assert len(beats) == len(frames) == drawn.nfe
    assert [number for number, _, _ in frames] == list(range(1, drawn.nfe + 1))
    assert frames[-1][2].shape == own.images.shape
    assert drawing.loaded == [flow.path]


def test_what_is_given_up_leaves_nothing_behind(drawing: Worker, shelf_store: Shelved) -> None:
    """The error of who asked comes back, the next answer is that to the next question."""
    flow = shelf_store[1][0]
    long = Batch(flow, "samples", {"steps": 1000}, [0], [0])
    beats: list[int] = []

    def alive() -> None:
        beats.append(1)
        if len(beats) == 3:
            raise TimeoutError("enough")

    for _ in range(2):
        beats.clear()
        with pytest.raises(TimeoutError, match="enough"):
            drawing.draw(long, alive)
    drawn = drawing.draw(batch(flow), lambda: None)
    assert drawn.nfe == 4
    assert drawn.images.shape[0] == 2


def test_an_error_comes_back_as_it_is(drawing: Worker, shelf_store: Shelved, tmp_path: Path) -> None:
    """And the process goes on."""
    with pytest.raises(DataError, match="holds no finished run"):
        drawing.load(Entry("none", "none-1", str(tmp_path)))
    assert drawing.draw(batch(shelf_store[1][1]), lambda: None).images.shape[0] == 2


def test_the_bound_holds(shelf_store: Shelved) -> None:
    """With room for one model there is one in memory: the one that was asked for last."""
    small = Worker(1)
    try:
        for entry in shelf_store[1]:
            small.load(entry)
            assert small.loaded == [entry.path]
    finally:
        small.close()


def test_its_death_is_told(shelf_store: Shelved) -> None:
    """To the one who waits for it, and to the replica."""
    told: list[str] = []
    dies = Worker(2**30, lambda: told.append("lost"))
    dies.load(shelf_store[1][0])

    def kill() -> None:
        os.kill(dies._process.pid, signal.SIGKILL)
        dies._process.wait()

    with pytest.raises(RuntimeError, match="has died"):
        dies.draw(Batch(shelf_store[1][0], "samples", {"steps": 1000}, [0], [0]), kill)
    assert told == ["lost"]
    dies.close()


def test_its_silence_is_seen(drawing: Worker, shelf_store: Shelved, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process does not pass for one that has nothing to do."""
    drawing.load(shelf_store[1][0])
    monkeypatch.setattr(worker, "SILENT_S", 3.0)
    os.kill(drawing._process.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: is_silent(drawing))
    finally:
        os.kill(drawing._process.pid, signal.SIGCONT)
    wait_for(lambda: not is_silent(drawing))


def is_silent(worker: Worker) -> bool:
    try:
        worker.check()
    except RuntimeError as error:
        return "has been silent" in str(error)
    return False


@pytest.mark.parametrize("stopped", [False, True])
def test_it_dies_with_its_replica(stopped: bool) -> None:
    """However that ends, and even if it is stopped itself."""
    code = (
        "import time; from genflow.serving.worker import Worker; made = Worker(1); "
        "print(made._process.pid, flush=True); time.sleep(1e6)"
    )
    replica = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert replica.stdout
    pid = int(replica.stdout.readline())
    wait_for(lambda: ignores(pid, signal.SIGINT))  # which it does once it is bound to its parent
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    replica.kill()
    replica.wait()
    assert gone(pid)
