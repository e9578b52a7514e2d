"""The engine process: its samples, cancellation, errors, heartbeat, and its end with the replica."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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


def until(condition: Callable[[], bool], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_samples_equal_the_engine(drawing: EngineProcess, model_store: ModelStore) -> None:
    """The process draws the engine's samples, and reports every evaluation with a frame."""
    store, (flow, *_) = model_store
    evaluations: list[int] = []
    frames: list[StepFrame] = []
    drawn = drawing.draw(batch(flow, send_frames=True), lambda: evaluations.append(1), frames.append)
    own = Engine.load(store.find("runs", flow.run)).draw([3, 4], [1, 2], steps=4)
    np.testing.assert_array_equal(drawn.images, own.images)
    assert len(evaluations) == len(frames) == drawn.nfe
    assert [number for number, _, _ in frames] == list(range(1, drawn.nfe + 1))
    assert frames[-1][2].shape == own.images.shape
    assert drawing.loaded == [flow.path]


def test_a_cancelled_batch_leaves_the_socket_clean(drawing: EngineProcess, model_store: ModelStore) -> None:
    """The callback's exception cancels the batch and is raised, and the next command gets its own answer."""
    flow = model_store[1][0]
    long = Batch(flow, "samples", {"steps": 1000}, [0], [0])
    evaluations: list[int] = []

    def cancel_third() -> None:
        evaluations.append(1)
        if len(evaluations) == 3:
            raise TimeoutError("enough")

    for _ in range(2):
        evaluations.clear()
        with pytest.raises(TimeoutError, match="enough"):
            drawing.draw(long, cancel_third)
    drawn = drawing.draw(batch(flow), lambda: None)
    assert drawn.nfe == 4
    assert drawn.images.shape[0] == 2


def test_an_error_keeps_its_type(drawing: EngineProcess, model_store: ModelStore, tmp_path: Path) -> None:
    """An error of the child is raised with its type, and the child draws the next batch."""
    with pytest.raises(DataError, match="contains no finished run"):
        drawing.load(ServedModel("none", "none-1", str(tmp_path)))
    assert drawing.draw(batch(model_store[1][1]), lambda: None).images.shape[0] == 2


def test_the_memory_limit_holds(model_store: ModelStore) -> None:
    """With memory for one model, only the most recently loaded one stays."""
    small = EngineProcess(1)
    try:
        for entry in model_store[1]:
            small.load(entry)
            assert small.loaded == [entry.path]
    finally:
        small.close()


def test_the_death_of_the_process_is_reported(model_store: ModelStore) -> None:
    """If the process dies, the current call raises and `on_exit` is called."""
    calls: list[str] = []
    dies = EngineProcess(2**30, lambda: calls.append("lost"))
    dies.load(model_store[1][0])

    def kill() -> None:
        os.kill(dies._process.pid, signal.SIGKILL)
        dies._process.wait()

    with pytest.raises(RuntimeError, match="has died"):
        dies.draw(Batch(model_store[1][0], "samples", {"steps": 1000}, [0], [0]), kill)
    assert calls == ["lost"]
    dies.close()


def test_a_stopped_process_fails_the_check(
    drawing: EngineProcess, model_store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process fails `check`, and passes again once it continues."""
    drawing.load(model_store[1][0])
    monkeypatch.setattr(engine_process, "HEARTBEAT_TIMEOUT_S", 2.0)

    def silent() -> bool:
        try:
            drawing.check()
        except RuntimeError as error:
            return "no heartbeat" in str(error)
        return False

    os.kill(drawing._process.pid, signal.SIGSTOP)
    try:
        until(silent)
    finally:
        os.kill(drawing._process.pid, signal.SIGCONT)
    until(lambda: not silent())


REPLICA = """
import time
from genflow.serving.engine_process import EngineProcess
made = EngineProcess(1)
before = made._heartbeat[:]
while made._heartbeat[:] == before:  # until it has begun
    time.sleep(0.05)
print(made._process.pid, flush=True)
time.sleep(1e6)
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_the_process_ends_with_its_replica(stopped: bool) -> None:
    """The process ends when its replica is killed, even if the process is stopped."""
    replica = subprocess.Popen([sys.executable, "-c", REPLICA], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    assert replica.stdout
    pid = int(replica.stdout.readline())
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    replica.kill()
    replica.wait()
    until(lambda: gone(pid))
