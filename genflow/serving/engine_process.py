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
from genflow.serving.schemas import FRAMES, Task
from genflow.system import environment, subprocesses

SILENT_S = 7.0  # without a beat of its heart, a process is stopped or starved
BEAT = struct.Struct("d")  # of the heart: when, on the monotonic clock that all processes of a machine share


@dataclass(frozen=True)
class Batch:
    """What is drawn at once.

    Args:
        entry: the model.
        task: what is asked of it.
        options: of sampling.
        seeds: (N,).
        labels: (N,).
        given: (N,) what each is made of besides: where a walk leads, a picture, a code.
        watched: whether frames are sent.
    """

    entry: ServedModel
    task: Task
    options: dict[str, Any]
    seeds: Sequence[int]
    labels: Sequence[int]
    given: Sequence[Any] = field(default=())
    watched: bool = False


Frame = tuple[int, np.ndarray, np.ndarray]  # number of the evaluation, records on their way, the guess of their ends


class EngineProcess:
    """The replica's side. One thread at a time may call it.

    Args:
        most_bytes: bound on the engines in memory; the one in use may be larger than it.
        lost: called when the process has died; it need not come back.
    """

    def __init__(self, most_bytes: int, lost: Callable[[], None] = lambda: None) -> None:
        self._lost = lost
        self.loaded: list[str] = []  # the runs in memory, the one used last at the end
        with tempfile.TemporaryFile() as file:
            file.write(BEAT.pack(time.monotonic() + 60))  # for it to begin in
            file.flush()
            self._heart, beat = mmap.mmap(file.fileno(), BEAT.size), file.fileno()
            self._process, self._socket = subprocesses.spawn(
                "genflow.serving.engine_process", str(beat), str(most_bytes), passed=[beat]
            )

    def draw(self, batch: Batch, alive: Callable[[], None], watch: Callable[[Frame], None] | None = None) -> Any:
        """What `Engine.draw`, `encode` or `decode` gives for the batch.

        Args:
            batch: what to draw.
            alive: called at every network evaluation; what it raises ends the drawing at the next one.
            watch: told of the frames.
        """
        return self._call("draw", batch, alive, watch)

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
        silent = time.monotonic() - BEAT.unpack(self._heart[:])[0]
        if silent > SILENT_S:
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
        self, what: str, given: Any, alive: Callable[[], None] = lambda: None,
        watch: Callable[[Frame], None] | None = None,
    ) -> Any:  # fmt: skip
        given_up: BaseException | None = None
        try:
            self._socket.send((what, given))
            while True:
                kind, value = self._socket.recv()
                if kind == "frame" and watch:
                    watch(value)
                elif kind == "beat" and given_up is None:
                    try:
                        alive()
                    except Exception as error:  # it is heard to its end, so that its answer is not that to the next
                        given_up = error
                        self._socket.send(GIVE_UP)
                elif kind in ("done", "failed"):
                    break
        except (EOFError, OSError) as error:
            self._lost()
            raise RuntimeError("the process that draws has died") from error
        if given_up:
            raise given_up
        if kind == "failed":
            raise value
        result, self.loaded = value
        return result


# --- In the process itself

GIVE_UP = ("give up", None)


class _GivenUp(Exception):  # noqa: N818
    """Nobody waits for what is being drawn."""


def main(arguments: Sequence[str]) -> None:
    """Do what comes through the socket, until the other end is closed."""
    environment.die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who ends the replica ends this
    end, beat, most_bytes = map(int, arguments)
    heart = mmap.mmap(beat, BEAT.size)
    threading.Thread(target=_beat, args=(heart,), name="heart", daemon=True).start()
    from genflow.serving.engine_cache import EngineCache

    shelf, replica = EngineCache(most_bytes), Connection(end)
    while True:
        try:
            what, given = replica.recv()
        except (EOFError, OSError):
            return
        if (what, given) == GIVE_UP:  # it came when there was nothing to give up any more
            continue
        answer: tuple[str, Any]
        try:
            drawn = _draw(shelf, given, replica) if what == "draw" else None
            if what == "load":
                shelf.engine(given)
            answer = ("done", (drawn, shelf.loaded()))
        except Exception as error:
            answer = ("failed", _portable(error))
        try:
            replica.send(answer)
        except OSError:
            return


def _beat(heart: mmap.mmap) -> None:
    while True:
        heart[:] = BEAT.pack(time.monotonic())
        time.sleep(1.0)


def _draw(shelf: Any, batch: Batch, replica: Connection) -> Any:
    """Draw a batch, telling the replica of every evaluation."""
    from torch import Tensor

    from genflow.data.shards import from_x
    from genflow.sampling.engine import Engine, SampleBatch

    engine: Engine = shelf.engine(batch.entry)
    rows, steps, count = len(batch.seeds), batch.options.get("steps", 1), 0
    every = max(1, -(-2 * steps // FRAMES)) if steps > FRAMES // 2 else 1

    def watch(x: Tensor, guess: Tensor) -> None:
        nonlocal count
        replica.send(("beat", None))
        if replica.poll():
            if replica.recv() == GIVE_UP:
                raise _GivenUp
            raise RuntimeError("the replica speaks while something is drawn for it")
        if batch.watched and not count % every and count // every < 2 * FRAMES:
            frame = (count + 1, from_x(x[:rows], engine.facts), from_x(guess[:rows], engine.facts))
            replica.send(("frame", frame))
        count += 1

    if batch.task == "encode":
        start = time.monotonic()
        codes = engine.encode(np.stack(batch.given), batch.labels, batch.seeds, watch)
        return SampleBatch(codes, np.asarray(batch.labels), 0, time.monotonic() - start)
    if batch.task == "decode":
        return engine.decode(np.stack(batch.given), batch.labels, batch.seeds, watch)
    toward = batch.given if batch.task == "walks" else None
    return engine.draw(batch.seeds, batch.labels, toward=toward, watch=watch, **batch.options)


def _portable(error: Exception) -> Exception:
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
