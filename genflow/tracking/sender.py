"""The sender: a helper process that replays a run's journal into MLflow while the run is training."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, ClassVar, cast

from genflow.storage.store import Store
from genflow.system import subprocesses
from genflow.tracking.mlflow_client import Requests, SendResult
from genflow.tracking.sync import BUSY, replay_all, replay_when_free

ALIVE = "alive"  # the message of a helper that makes progress
REPORT_S = 1.0  # between two of these messages


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

        Args:
            deadline_s: seconds without progress after which the helper is killed. Importing MLflow and packing a
                model are progress, and so is every answer of the server.

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
            answer: Any = ALIVE
            while answer == ALIVE:  # each message of a helper that works or makes progress starts the deadline again
                if not self._socket.poll(deadline_s):
                    process.kill()
                    self.sent = SendResult(problem=f"MLflow did not answer within {deadline_s:g} s")
                    self._close(process)
                    return True
                answer = self._socket.recv()
            self.sent = answer
        except (EOFError, OSError):
            self._close(process)
            self.sent = SendResult(problem=f"the sender exited with code {process.returncode}")
            return False
        Sender._idle = self._configuration, process, self._socket
        return True

    def _close(self, process: "subprocess.Popen[bytes]") -> None:
        self._socket.close()
        process.wait()


class _Reporter:
    """Tells the run, while it waits for the helper to finish, that the helper is not waiting for a silent server.

    Attributes:
        requests: what the helper is waiting for.
        finishing: whether the run waits for the helper's result.
        lock: held while a message is sent.
    """

    def __init__(self) -> None:
        self.requests, self.finishing, self.lock = Requests(), False, threading.Lock()
        self._answered = 0

    def run(self, connection: Connection) -> None:
        """Report every REPORT_S seconds, until the run has ended."""
        while True:
            time.sleep(REPORT_S)
            with contextlib.suppress(OSError), self.lock:
                # a message that is not read yet is the one that asks for the result: a replay is still under way
                if (self.finishing or connection.poll()) and self.is_progress():
                    connection.send(ALIVE)

    def is_progress(self) -> bool:
        """Whether the helper works on this machine, or the server has answered since the last call."""
        answered, self._answered = self._answered, self.requests.answered
        return not self.requests.waiting or answered != self._answered


def _serve(socket: str, root: str, every_s: str) -> None:
    """The main loop of the helper process.

    Messages: ("begin", run id) and ("finish", deadline in seconds). It replays every `every_s` seconds in between.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ray sends SIGINT to a job's whole process tree before the run ends
    os.nice(10)  # measured: training next to it is not slowed down
    store, connection, reporter = Store(root), Connection(int(socket)), _Reporter()
    threading.Thread(target=reporter.run, args=(connection,), daemon=True).start()
    run_id, total, sent, outage = "", SendResult(), SendResult(), False
    wait: float | None = None
    while True:
        message, value = "replay", 60.0  # the value is the deadline in seconds, or the run id of "begin"
        if connection.poll(wait):
            try:
                message, value = cast(tuple[str, float], connection.recv())
            except (EOFError, OSError):
                message = "exit"
        if message == "begin":
            run_id, total, wait, outage = str(value), SendResult(), 0.0, False
            continue
        if not run_id:
            return
        reporter.finishing = message == "finish"
        if message == "finish" and outage:  # the run has just waited for a silent server, and does not wait again
            sent = SendResult(problem=sent.problem)
        else:
            send = replay_all if message == "replay" else replay_when_free
            sent = send(store, run_id, deadline_s=value, requests=reporter.requests)
        outage = bool(sent.problem) and sent.problem != BUSY and connection.poll()
        total = SendResult(total.entries + sent.entries, sent.complete, sent.problem, total.rejected + sent.rejected)
        wait = float(every_s)
        if message == "exit":
            return
        if message == "finish":
            with reporter.lock:
                reporter.finishing = False
                connection.send(total)
            run_id, wait = "", None


if __name__ == "__main__":
    _serve(*sys.argv[1:])
