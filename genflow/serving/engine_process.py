"""The process that draws: the engines in memory, and nothing else. Its replica speaks to it through a socket.

A process of its own, because one that answers requests, too, is held up by Python's lock. It ends when its replica
does, however that ends, and the replica ends when it does: a request under way is then sent to another replica.

    python -m genflow.serving.engine_process SOCKET BEAT BYTES

SOCKET and BEAT are file descriptors, BYTES is the bound on the engines' memory.
"""

import copy
import mmap
import os
import pickle
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from genflow.serving.model_list import ServedModel
from genflow.serving.schemas import STREAM_FRAMES, Task
from genflow.system import environment, subprocesses

HEARTBEAT_TIMEOUT_S = 7.0  # without a heartbeat_fd of its heartbeat, a process is stopped or starved
HEARTBEAT = struct.Struct("d")  # of the heartbeat: when, on the monotonic clock that all processes of a machine share


@dataclass(frozen=True)
class Batch:
    """What is drawn at once.

    Args:
        entry: the model.
        task: what is asked of it.
        options: of sampling.
        seeds: (N,).
        labels: (N,).
        inputs: (N,) what each is made of besides: where a walk leads, a picture, a code.
        send_frames: whether frames are sent.
    """

    entry: ServedModel
    task: Task
    options: dict[str, Any]
    seeds: Sequence[int]
    labels: Sequence[int]
    inputs: Sequence[Any] = field(default=())
    send_frames: bool = False


StepFrame = tuple[int, np.ndarray, np.ndarray]  # number of the evaluation, noisy records, guess of their ends


class EngineProcess:
    """The replica's side. One thread at a time may call it.

    Args:
        max_bytes: bound on the engines in memory; the one in use may be larger than it.
        on_exit: called when the process has died; it need not come back.
    """

    def __init__(self, max_bytes: int, on_exit: Callable[[], None] = lambda: None) -> None:
        self._on_exit = on_exit
        self.loaded: list[str] = []  # the runs in memory, the one used last at the end
        with tempfile.TemporaryFile() as file:
            file.write(HEARTBEAT.pack(time.monotonic() + 60))  # for it to begin in
            file.flush()
            self._heartbeat, heartbeat_fd = mmap.mmap(file.fileno(), HEARTBEAT.size), file.fileno()
            self._process, self._socket = subprocesses.spawn(
                "genflow.serving.engine_process", str(heartbeat_fd), str(max_bytes), passed=[heartbeat_fd]
            )

    def draw(
        self, batch: Batch, on_evaluation: Callable[[], None], on_frame: Callable[[StepFrame], None] | None = None
    ) -> Any:
        """What `Engine.draw`, `encode` or `decode` gives for the batch.

        Args:
            batch: what to draw.
            on_evaluation: called at every network evaluation; what it raises ends the drawing at the next one.
            on_frame: told of the frames.
        """
        return self._call("draw", batch, on_evaluation, on_frame)

    def load(self, entry: ServedModel) -> None:
        """Have a model in memory, if there is room for it beside those that were loaded or used after it.

        Raises:
            Exception: whatever is wrong with it.
        """
        self._call("load", entry)

    def check(self) -> None:
        """Raise if it gives no sign of life.

        Raises:
            RuntimeError: it is stopped, starved or dead.
        """
        silent = time.monotonic() - HEARTBEAT.unpack(self._heartbeat[:])[0]
        if silent > HEARTBEAT_TIMEOUT_S:
            raise RuntimeError(f"the process that draws has been silent for {silent:.0f} s")

    def lower_priority(self, by: int) -> None:
        """Let it wait for those that answer, where both want one core. Called before it has drawn."""
        os.setpriority(os.PRIO_PROCESS, self._process.pid, by)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _call(
        self, command: str, argument: Any, on_evaluation: Callable[[], None] = lambda: None,
        on_frame: Callable[[StepFrame], None] | None = None,
    ) -> Any:  # fmt: skip
        cancel_error: BaseException | None = None
        try:
            self._socket.send((command, argument))
            while True:
                kind, value = self._socket.recv()
                if kind == "frame" and on_frame:
                    on_frame(value)
                elif kind == "evaluation" and cancel_error is None:
                    try:
                        on_evaluation()
                    except Exception as error:  # it is heard to its end, so that its answer is not that to the next
                        cancel_error = error
                        self._socket.send(CANCEL)
                elif kind in ("done", "failed"):
                    break
        except (EOFError, OSError) as error:
            self._on_exit()
            raise RuntimeError("the process that draws has died") from error
        if cancel_error:
            raise cancel_error
        if kind == "failed":
            raise value
        result, self.loaded = value
        return result


# --- In the process itself

CANCEL = ("give up", None)


class _DrawingCancelled(Exception):  # noqa: N818
    """Nobody waits for what is being drawn."""


def main(arguments: Sequence[str]) -> None:
    """Do what comes through the socket, until the other end is closed."""
    environment.die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who ends the replica ends this
    end, heartbeat_fd, max_bytes = map(int, arguments)
    heartbeat = mmap.mmap(heartbeat_fd, HEARTBEAT.size)
    threading.Thread(target=_write_heartbeats, args=(heartbeat,), name="heartbeat", daemon=True).start()
    from genflow.serving.engine_cache import EngineCache

    engines, replica = EngineCache(max_bytes), Connection(end)
    while True:
        try:
            command, argument = replica.recv()
        except (EOFError, OSError):
            return
        if (command, argument) == CANCEL:  # it came when there was nothing to give up any more
            continue
        answer: tuple[str, Any]
        try:
            drawn = _draw(engines, argument, replica) if command == "draw" else None
            if command == "load":
                engines.engine(argument)
            answer = ("done", (drawn, engines.loaded()))
        except Exception as error:
            answer = ("failed", _picklable(error))
        try:
            replica.send(answer)
        except OSError:
            return


def _write_heartbeats(heartbeat: mmap.mmap) -> None:
    while True:
        heartbeat[:] = HEARTBEAT.pack(time.monotonic())
        time.sleep(1.0)


def _draw(engines: Any, batch: Batch, replica: Connection) -> Any:
    """Draw a batch, telling the replica of every evaluation."""
    from torch import Tensor

    from genflow.data.shards import from_x
    from genflow.sampling.engine import Drawn, Engine

    engine: Engine = engines.engine(batch.entry)
    rows, steps, count = len(batch.seeds), batch.options.get("steps", 1), 0
    every = max(1, -(-2 * steps // STREAM_FRAMES)) if steps > STREAM_FRAMES // 2 else 1

    def on_evaluation(x: Tensor, guess: Tensor) -> None:
        nonlocal count
        replica.send(("evaluation", None))
        if replica.poll():
            if replica.recv() == CANCEL:
                raise _DrawingCancelled
            raise RuntimeError("the replica speaks while something is drawn for it")
        if batch.send_frames and not count % every and count // every < 2 * STREAM_FRAMES:
            frame = (count + 1, from_x(x[:rows], engine.facts), from_x(guess[:rows], engine.facts))
            replica.send(("frame", frame))
        count += 1

    if batch.task == "encode":
        start = time.monotonic()
        codes = engine.encode(np.stack(batch.inputs), batch.labels, batch.seeds, on_evaluation)
        return Drawn(codes, np.asarray(batch.labels), 0, time.monotonic() - start)
    if batch.task == "decode":
        return engine.decode(np.stack(batch.inputs), batch.labels, batch.seeds, on_evaluation)
    toward = batch.inputs if batch.task == "walks" else None
    return engine.draw(batch.seeds, batch.labels, toward=toward, watch=on_evaluation, **batch.options)


def _picklable(error: Exception) -> Exception:
    """The error, or one that says the same and can be sent."""
    try:
        copy.copy(error)  # takes it apart and puts it together as the other end will
        pickle.dumps(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    from genflow.serving import engine_process  # as the replica knows it: what is sent is of that module's classes

    engine_process.main(sys.argv[1:])
