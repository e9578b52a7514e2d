"""The sender: a helper process that replays a run's journal into MLflow while the run is training."""

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
    """A low-priority helper process that sends a run's journal, and its children's, every few seconds.

    The socket reaches EOF when the run ends, even by `kill -9`; the helper then sends the rest and exits. A process
    that trains several runs in turn reuses its helper, whose imports take as long as a short run.

    Args:
        store: the store.
        run_id: the run's id in the store.
        every_s: seconds between two replays.

    Attributes:
        sent: the result, once `finish` has returned.
    """

    _idle: ClassVar[tuple[Any, Any, Any] | None] = None  # a helper's configuration, process and connection

    def __init__(self, store: Store, run_id: str, *, every_s: float = 5.0) -> None:
        self.sent = SendResult(problem="the sender was not started")
        self._arguments, self._run_id = (store.url, str(every_s)), run_id
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the helper, or reuse an idle one. Returns at once."""
        self._configuration = (self._arguments, dict(os.environ))
        idle, Sender._idle = Sender._idle, None
        if idle and idle[0] == self._configuration:
            _, self._process, self._socket = idle
        else:
            if idle:
                idle[2].close()
            self._process, self._socket = subprocesses.spawn(
                "genflow.tracking.sender", *self._arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,  # so that Ctrl-C reaches the run only
            )  # fmt: skip
        with contextlib.suppress(OSError):  # the helper has exited; `finish` notices that
            self._socket.send(("begin", self._run_id))

    def finish(self, deadline_s: float = 20.0) -> bool:
        """Send the rest. Close the journal before, so that the run's final status is in it.

        Returns:
            Whether MLflow has everything. If not, `sent.problem` is the reason, and `sync` sends the rest later.
        """
        if self._process is not None and not self._flush(deadline_s):  # the helper was killed: start another
            self.start()
            self._flush(deadline_s)
        self._process = None
        return self.sent.complete

    def _flush(self, deadline_s: float) -> bool:
        """Make the helper send the rest. Return False if it exited without a result."""
        process = self._process
        assert process is not None
        try:
            self._socket.send(("finish", deadline_s))
            if not self._socket.poll(deadline_s):
                process.kill()
                self.sent = SendResult(problem=f"MLflow did not accept everything within {deadline_s:g} s")
                self._close(process)
                return True
            self.sent = self._socket.recv()
        except (EOFError, OSError):
            self._close(process)
            self.sent = SendResult(problem=f"the sender exited with code {process.returncode}")
            return False
        Sender._idle = self._configuration, process, self._socket
        return True

    def _close(self, process: "subprocess.Popen[bytes]") -> None:
        self._socket.close()
        process.wait()


def _serve(socket: str, root: str, every_s: str) -> None:
    """The main loop of the helper process.

    Messages: ("begin", run id) and ("finish", deadline in seconds). It replays every `every_s` seconds in between.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ray sends SIGINT to a job's whole process tree before the run ends
    os.nice(10)  # measured: training next to it is not slowed down
    store, connection = Store(root), Connection(int(socket))
    run_id, total = "", SendResult()
    wait: float | None = None
    while True:
        message, value = "replay", 60.0  # the value is the deadline in seconds, or the run id of "begin"
        if connection.poll(wait):
            try:
                message, value = cast(tuple[str, float], connection.recv())
            except (EOFError, OSError):
                message = "exit"
        if message == "begin":
            run_id, total, wait = str(value), SendResult(), 0.0
            continue
        if not run_id:
            return
        deadline, last = time.monotonic() + value, message != "replay"
        sent = replay_all(store, run_id, deadline_s=value)
        while last and sent.problem == BUSY and time.monotonic() < deadline:  # another command is sending the journal
            time.sleep(0.1)
            sent = replay_all(store, run_id, deadline_s=deadline - time.monotonic())
        total = SendResult(total.entries + sent.entries, sent.complete, sent.problem, total.rejected + sent.rejected)
        wait = float(every_s)
        if message == "exit":
            return
        if message == "finish":
            connection.send(total)
            run_id, wait = "", None


if __name__ == "__main__":
    _serve(*sys.argv[1:])
