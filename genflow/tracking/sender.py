"""The sender: a helper process that replays a run's journal into MLflow while the run is training."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any, ClassVar, cast

from genflow.storage.store import Store
from genflow.system import subprocesses
from genflow.tracking.journal_replay import SendResult
from genflow.tracking.mlflow_client import Requests
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


class Mailbox:
    """The helper's end of the connection: one thread reads it, so the main thread may be busy with a replay.

    While the run waits for the result, another thread tells it every `report_s` seconds that the helper does not wait
    for a silent server. A lock keeps the messages of the two senders apart.

    Args:
        connection: the connection to the run; nothing else may use it.
        report_s: seconds between two reports.

    Attributes:
        requests: what the helper is waiting for.
        finishing: whether the run waits for the result. It sends nothing else until it has the result.
    """

    def __init__(self, connection: Connection, report_s: float = REPORT_S) -> None:
        self.requests, self.finishing = Requests(), False
        self._connection, self._report_s = connection, report_s
        self._messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._sending, self._ended, self._answered = threading.Lock(), threading.Event(), 0
        for work in (self._read, self._report):
            threading.Thread(target=work, daemon=True).start()

    def next(self, wait_s: float | None) -> tuple[str, Any]:
        """The next message of the run: ("begin", run id), ("finish", deadline in seconds) or ("exit", None).

        Returns ("replay", None) if none arrives within `wait_s` seconds; None: waits for one.
        """
        try:
            return self._messages.get(timeout=wait_s)
        except queue.Empty:
            return "replay", None

    def answer(self, result: SendResult) -> None:
        """Send the result that the run waits for."""
        with self._sending, contextlib.suppress(OSError):  # the run has ended; the next message is "exit"
            self.finishing = False
            self._connection.send(result)

    def is_progress(self) -> bool:
        """Whether the helper works on this machine, or the server has answered since the last call."""
        answered, self._answered = self._answered, self.requests.answered
        return not self.requests.waiting or answered != self._answered

    def _read(self) -> None:
        while True:
            try:
                message = cast(tuple[str, Any], self._connection.recv())
            except (EOFError, OSError):
                message = "exit", None
            self.finishing = message[0] == "finish"
            self._messages.put(message)
            if message[0] == "exit":
                self._ended.set()
                return

    def _report(self) -> None:
        while not self._ended.wait(self._report_s):
            with self._sending, contextlib.suppress(OSError):
                if self.finishing and self.is_progress():
                    self._connection.send(ALIVE)


def _serve(socket: str, root: str, every_s: str) -> None:
    """The main loop of the helper process: replays every `every_s` seconds, and once more when the run ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ray sends SIGINT to a job's whole process tree before the run ends
    os.nice(10)  # measured: training next to it is not slowed down
    store, mailbox = Store(root), Mailbox(Connection(int(socket)))
    run_id, total, sent, outage = "", SendResult(), SendResult(), False
    wait: float | None = None
    while True:
        message, value = mailbox.next(wait)
        if message == "begin":
            run_id, total, wait, outage = str(value), SendResult(), 0.0, False
            continue
        if not run_id:
            return
        if message == "finish" and outage:  # the run has just waited for a silent server, and does not wait again
            sent = SendResult(problem=sent.problem)
        else:
            send = replay_all if message == "replay" else replay_when_free
            sent = send(store, run_id, deadline_s=value or 60.0, requests=mailbox.requests)
        outage = bool(sent.problem) and sent.problem != BUSY and mailbox.finishing
        total = SendResult(total.entries + sent.entries, sent.complete, sent.problem, total.rejected + sent.rejected)
        wait = float(every_s)
        if message == "exit":
            return
        if message == "finish":
            mailbox.answer(total)
            run_id, wait = "", None


if __name__ == "__main__":
    _serve(*sys.argv[1:])
