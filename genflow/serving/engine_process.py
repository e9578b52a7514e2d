"""The child process that holds the engines and draws. Its replica sends it commands through a socket.

A separate process, because drawing in the replica's own process would compete with answering for Python's global
interpreter lock. The child ends when its replica ends, even if the replica is killed. The replica ends when its child
does, so that the proxy sends the current requests to another replica.

    python -m genflow.serving.engine_process SOCKET HEARTBEAT BYTES

SOCKET and HEARTBEAT are file descriptors, BYTES is the limit of the engines' memory.
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
from typing import TYPE_CHECKING, Any

import numpy as np

from genflow.errors import GenflowError
from genflow.serving.conditions import Condition, Words
from genflow.serving.model_list import ServedModel
from genflow.serving.responses import RequestError
from genflow.serving.schemas import STREAM_FRAMES, Task
from genflow.system import environment, subprocesses

if TYPE_CHECKING:  # imports torch
    from genflow.sampling.engine import Engine

HEARTBEAT_TIMEOUT_S = 7.0  # after this time without a heartbeat, a process counts as stopped or starved
EMBEDDED_AT_ONCE = 16  # prompts
HEARTBEAT = struct.Struct("d")  # its time, on the monotonic clock that all processes of a machine share


@dataclass(frozen=True)
class Batch:
    """The work of one call of the engine.

    Args:
        entry: the model.
        task: samples, walks, encode or decode.
        options: sampling options.
        seeds: (N,).
        conditions: (N,) class indices, or captions.
        inputs: (N,) further input of each sample: the end of a walk, an image, or a code.
        send_frames: whether to send the intermediate samples.
    """

    entry: ServedModel
    task: Task
    options: dict[str, Any]
    seeds: Sequence[int]
    conditions: Sequence[Condition]
    inputs: Sequence[Any] = field(default=())
    send_frames: bool = False


StepFrame = tuple[int, np.ndarray, np.ndarray]  # number of the evaluation, current records, predicted final records


class EngineProcess:
    """The replica's handle of the child process. Only one thread at a time may call it.

    Args:
        max_bytes: limit of the engines' memory; one engine alone may exceed it.
        on_exit: called when the child has ended unexpectedly; it need not return.
    """

    def __init__(self, max_bytes: int, on_exit: Callable[[], None] = lambda: None) -> None:
        self._on_exit = on_exit
        self.loaded: list[str] = []  # folders of the loaded runs, the most recently used last
        with tempfile.TemporaryFile() as file:
            file.write(HEARTBEAT.pack(time.monotonic() + 60))  # it has 60 s to start
            file.flush()
            self._heartbeat, heartbeat_fd = mmap.mmap(file.fileno(), HEARTBEAT.size), file.fileno()
            self._process, self._socket = subprocesses.spawn(
                "genflow.serving.engine_process", str(heartbeat_fd), str(max_bytes), pass_fds=[heartbeat_fd]
            )

    def draw(
        self, batch: Batch, on_evaluation: Callable[[], None], on_frame: Callable[[StepFrame], None] | None = None
    ) -> Any:
        """Return the result of `Engine.draw`, `encode` or `decode` for the batch.

        Args:
            batch: the batch.
            on_evaluation: called at every network evaluation; an exception from it cancels the batch and is raised.
            on_frame: called with the intermediate samples.
        """
        return self._call("draw", batch, on_evaluation, on_frame)

    def load(self, entry: ServedModel) -> None:
        """Load a model into memory, where it stays until others need the space.

        Raises:
            Exception: the error of the child that could not load it.
        """
        self._call("load", entry)

    def check(self) -> None:
        """Check the heartbeat of the child.

        Raises:
            RuntimeError: the child is stopped, starved or dead.
        """
        silent = time.monotonic() - HEARTBEAT.unpack(self._heartbeat[:])[0]
        if silent > HEARTBEAT_TIMEOUT_S:
            raise RuntimeError(f"the engine process has sent no heartbeat for {silent:.0f} s")

    def lower_priority(self, by: int) -> None:
        """Raise the niceness of the child to `by`, so that the replica goes first. Call it before the first batch."""
        os.setpriority(os.PRIO_PROCESS, self._process.pid, by)

    def close(self) -> None:
        """Kill the child process."""
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
                    except Exception as error:  # keep reading: the child still answers this command
                        cancel_error = error
                        self._socket.send(CANCEL)
                elif kind in ("done", "failed"):
                    break
        except (EOFError, OSError) as error:
            self._on_exit()
            raise RuntimeError("the engine process has died") from error
        if cancel_error:
            raise cancel_error
        if kind == "failed":
            raise value
        result, self.loaded = value
        return result


# --- In the child process

CANCEL = ("cancel", None)


class _DrawingCancelled(Exception):  # noqa: N818
    """The replica cancelled the batch."""


def main(arguments: Sequence[str]) -> None:
    """Run the commands from the socket until the replica closes its end."""
    environment.die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the replica, which ends this process
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
        if (command, argument) == CANCEL:  # the batch was already complete
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
    """Draw a batch, and report every network evaluation to the replica."""
    from torch import Tensor

    from genflow.data.values import from_x
    from genflow.sampling.engine import Engine, SampleBatch

    engine: Engine = engines.engine(batch.entry)
    rows, steps, count = len(batch.seeds), batch.options.get("steps", 1), 0
    every = max(1, -(-2 * steps // STREAM_FRAMES)) if steps > STREAM_FRAMES // 2 else 1

    def on_step() -> None:
        replica.send(("evaluation", None))
        if replica.poll():
            if replica.recv() == CANCEL:
                raise _DrawingCancelled
            raise RuntimeError("the replica sent a command while a batch is being drawn")

    def send_frame(x: Tensor, guess: Tensor) -> None:
        nonlocal count
        if not count % every and count // every < 2 * STREAM_FRAMES:
            frame = (count + 1, from_x(x[:rows], engine.facts), from_x(guess[:rows], engine.facts))
            replica.send(("frame", frame))
        count += 1

    watch = send_frame if batch.send_frames else None
    labels, words = _split(batch.conditions)
    prompts = [each.prompt for each in words] or None
    _embed(engine, words, on_step)
    if batch.task == "encode":
        start = time.monotonic()
        codes = engine.encode(np.stack(batch.inputs), labels, batch.seeds, watch, prompts=prompts, on_step=on_step)
        return SampleBatch(codes, np.zeros(rows, np.int64), 0, time.monotonic() - start)
    if batch.task == "decode":
        return engine.decode(np.stack(batch.inputs), labels, batch.seeds, watch, prompts=prompts, on_step=on_step)
    return engine.draw(
        batch.seeds, labels, prompts=prompts, negative=[each.negative for each in words] or "",
        toward=batch.inputs if batch.task == "walks" else None,
        toward_prompts=[each[2:] for each in words] if any(each.share for each in words) else None,
        watch=watch, on_step=on_step, **batch.options,
    )  # fmt: skip


def _embed(engine: "Engine", words: Sequence[Words], on_step: Callable[[], None]) -> None:
    """Embed the words of a batch, so that the seconds of `Engine.draw`, which the queue estimates, have only the net.

    `on_step` is called in between, because many long prompts take longer than a hung net may.

    Raises:
        RequestError: the text encoder cannot read them.
    """
    if engine.prompts is None:
        return
    texts = list(dict.fromkeys(text for each in words for text in (each.prompt, each.negative, each.toward)))
    for first in range(0, len(texts), EMBEDDED_AT_ONCE):
        on_step()
        try:
            engine.prompts.text(texts[first : first + EMBEDDED_AT_ONCE])
        except GenflowError as error:
            raise RequestError(400, error.message, "prompt", error.hint) from error


def _split(conditions: Sequence[Condition]) -> tuple[list[int] | None, list[Words]]:
    """The conditions of a batch as labels, or as captions."""
    words = [each for each in conditions if isinstance(each, Words)]
    return (None if words else [each for each in conditions if not isinstance(each, Words)]), words


def _picklable(error: Exception) -> Exception:
    """Return the error if it can be pickled, else a RuntimeError with its message."""
    try:
        copy.copy(error)  # rebuilds it from `__reduce__`, as unpickling does
        pickle.dumps(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    from genflow.serving import engine_process  # not `__main__`: pickled classes belong to this module

    engine_process.main(sys.argv[1:])
