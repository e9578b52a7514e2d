"""The sender: a process that replays a run's journal into MLflow while the run is under way."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from typing import Any, ClassVar, cast

from genflow.storage.store import Store
from genflow.system import subprocesses
from genflow.tracking.mlflow_client import SendResult
from genflow.tracking.sync import BUSY, replay_all


class Sender:
    """A process beside a run that sends its journal, and its children's, every few seconds, at low priority.

    It learns of the run's end, even by `kill -9`, from that of the socket between them, and sends what is left. A
    process that trains one run after another keeps its sender, for whose imports take as long as a short run.

    Args:
        store: the store.
        run_id: the run's id in it.
        every_s: seconds between two passes.

    Attributes:
        sent: what became of the journal, once it is finished.
    """

    _idle: ClassVar[tuple[Any, Any, Any] | None] = None  # what it was told, the process, the socket

    def __init__(self, store: Store, run_id: str, *, every_s: float = 5.0) -> None:
        self.sent = SendResult(problem="it was not started")
        self._arguments, self._run_id = (store.url, str(every_s)), run_id
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin. Returns at once."""
        self._configuration = (self._arguments, dict(os.environ))
        idle, Sender._idle = Sender._idle, None
        if idle and idle[0] == self._configuration:
            _, self._process, self._socket = idle
        else:
            if idle:
                idle[2].close()
            self._process, self._socket = subprocesses.spawn(
                "genflow.tracking.sender", *self._arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is meant for the run
            )  # fmt: skip
        with contextlib.suppress(OSError):  # it has died, and `finish` will see
            self._socket.send(("begin", self._run_id))

    def finish(self, deadline_s: float = 20.0) -> bool:
        """Send what is left. Close the journal before, so that its last word is in it.

        Returns:
            Whether MLflow has everything. If not, `sent.problem` says why, and the journal waits for `sync`.
        """
        if self._process is not None and not self._flush(deadline_s):  # somebody killed it: the journal does not suffer
            self.start()
            self._flush(deadline_s)
        self._process = None
        return self.sent.complete

    def _flush(self, deadline_s: float) -> bool:
        """Have the process send what is left; whether it lived to say so."""
        process = self._process
        assert process is not None
        try:
            self._socket.send(("finish", deadline_s))
            if not self._socket.poll(deadline_s):
                process.kill()
                self.sent = SendResult(problem=f"MLflow did not take it within {deadline_s:g} s")
                self._close(process)
                return True
            self.sent = self._socket.recv()
        except (EOFError, OSError):
            self._close(process)
            self.sent = SendResult(problem=f"the sender ended with code {process.returncode}")
            return False
        Sender._idle = self._configuration, process, self._socket
        return True

    def _close(self, process: "subprocess.Popen[bytes]") -> None:
        self._socket.close()
        process.wait()


def _serve(end: str, root: str, every_s: str) -> None:
    """The process of a `Sender`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ray stops a job's whole tree with it; the run's end is still to come
    os.nice(10)  # measured: training beside it keeps its speed
    store, asked = Store(root), Connection(int(end))
    run_id, total = "", SendResult()
    wait: float | None = None
    while True:
        what, value = "look", 60.0  # a word, and the seconds that it leaves, or the run that it names
        if asked.poll(wait):
            try:
                what, value = cast(tuple[str, float], asked.recv())
            except (EOFError, OSError):
                what = "end"
        if what == "begin":
            run_id, total, wait = str(value), SendResult(), 0.0
            continue
        if not run_id:
            return
        deadline, last = time.monotonic() + value, what != "look"
        sent = replay_all(store, run_id, deadline_s=value)
        while last and sent.problem == BUSY and time.monotonic() < deadline:  # some command's sync was first
            time.sleep(0.1)
            sent = replay_all(store, run_id, deadline_s=deadline - time.monotonic())
        total = SendResult(total.entries + sent.entries, sent.complete, sent.problem, total.rejected + sent.rejected)
        wait = float(every_s)
        if what == "end":
            return
        if what == "finish":
            asked.send(total)
            run_id, wait = "", None


if __name__ == "__main__":
    _serve(*sys.argv[1:])
