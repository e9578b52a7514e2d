"""The process that draws: it draws what the engine does, and neither outlives its replica nor hangs unseen."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from genflow.errors import DataError
from genflow.sampling.engine import Engine
from genflow.serving import engine_process
from genflow.serving.engine_process import Batch, EngineProcess, StepFrame
from genflow.serving.model_list import ServedModel
from genflow.storage.store import Store

ModelStore = tuple[Store, list[ServedModel]]


@pytest.fixture(scope="module")
def drawing() -> Iterator[EngineProcess]:
    made = EngineProcess(2**30)
    yield made
    made.close()


def batch(entry: ServedModel, **more: object) -> Batch:
    options = {"steps": 4} if entry.name == "flow" else {}
    return Batch(entry, "samples", options, [3, 4], [1, 2], **more)  # type: ignore[arg-type]


def gone(pid: int) -> bool:
    """Whether a process has ended, within seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_it_draws_what_the_engine_draws(drawing: EngineProcess, model_store: ModelStore) -> None:
    """And says so at every evaluation; frames are sent to those alone who watch."""
    store, (flow, *_) = model_store
    beats: list[int] = []
    frames: list[StepFrame] = []
    drawn = drawing.draw(batch(flow, send_frames=True), lambda: beats.append(1), frames.append)
    own = Engine.load(store.find("runs", flow.run)).draw([3, 4], [1, 2], steps=4)
    np.testing.assert_array_equal(drawn.images, own.images)
    assert len(beats) == len(frames) == drawn.nfe
    assert [number for number, _, _ in frames] == list(range(1, drawn.nfe + 1))
    assert frames[-1][2].shape == own.images.shape
    assert drawing.loaded == [flow.path]


def test_what_is_given_up_leaves_nothing_behind(drawing: EngineProcess, model_store: ModelStore) -> None:
    """The error of who asked comes back, the next answer is that to the next question."""
    flow = model_store[1][0]
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


def test_an_error_comes_back_as_it_is(drawing: EngineProcess, model_store: ModelStore, tmp_path: Path) -> None:
    """And the process goes on."""
    with pytest.raises(DataError, match="holds no finished run"):
        drawing.load(ServedModel("none", "none-1", str(tmp_path)))
    assert drawing.draw(batch(model_store[1][1]), lambda: None).images.shape[0] == 2


def test_the_bound_holds(model_store: ModelStore) -> None:
    """With room for one model there is one in memory: the one that was asked for last."""
    small = EngineProcess(1)
    try:
        for entry in model_store[1]:
            small.load(entry)
            assert small.loaded == [entry.path]
    finally:
        small.close()


def test_its_death_is_told(model_store: ModelStore) -> None:
    """To the one who waits for it, and to the replica."""
    told: list[str] = []
    dies = EngineProcess(2**30, lambda: told.append("lost"))
    dies.load(model_store[1][0])

    def kill() -> None:
        os.kill(dies._process.pid, signal.SIGKILL)
        dies._process.wait()

    with pytest.raises(RuntimeError, match="has died"):
        dies.draw(Batch(model_store[1][0], "samples", {"steps": 1000}, [0], [0]), kill)
    assert told == ["lost"]
    dies.close()


def test_its_silence_is_seen(drawing: EngineProcess, model_store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process does not pass for one that has nothing to do."""
    drawing.load(model_store[1][0])
    monkeypatch.setattr(engine_process, "HEARTBEAT_TIMEOUT_S", 3.0)
    os.kill(drawing._process.pid, signal.SIGSTOP)
    try:
        time.sleep(4.5)
        with pytest.raises(RuntimeError, match="has been silent"):
            drawing.check()
    finally:
        os.kill(drawing._process.pid, signal.SIGCONT)
    time.sleep(2.0)
    drawing.check()


@pytest.mark.parametrize("stopped", [False, True])
def test_it_dies_with_its_replica(stopped: bool) -> None:
    """However that ends, and even if it is stopped itself."""
    code = (
        "import time; from genflow.serving.engine_process import EngineProcess; made = EngineProcess(1); "
        "print(made._process.pid, flush=True); time.sleep(1e6)"
    )
    replica = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert replica.stdout
    pid = int(replica.stdout.readline())
    time.sleep(3.0)  # for it to begin in
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    replica.kill()
    replica.wait()
    assert gone(pid)
