"""MLflow as the rest of genflow sees it: where it is, and the journals' way to it.

    training thread ──> journal (a file) ──> Sender (a process beside the run) ──> MLflow
                              └────────────> sync (the next command, after an outage)

The sender is a process and not a thread, because MLflow's import and its batches are seconds of pure Python in
which a thread would hold the interpreter's lock (docs/decisions/0005-metrics-go-through-a-journal.md).

    <store>/mlflow.db, mlartifacts/      unless MLFLOW_TRACKING_URI names another place
    <store>/journals/                    <run id>.jsonl, <run id>.cursor.json

Of a store in a bucket, `<store>` is this machine's mirror: the journals are the bucket's, the database is this
machine's own, and `sync` makes it from the journals of all machines. Nothing is sent to MLflow that is not in the
bucket's journal: so a run that goes on on another machine says nothing twice.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, cast

from genflow import beside
from genflow.errors import GenflowError, SetupError, UsageError
from genflow.journal import Cursor, entries, has_writer, journal_path, opening
from genflow.lease import holder
from genflow.mlflow_door import Outage, Pass, Sent, create_database, line, without_password
from genflow.store import Store, clear_disk_errors, sync_folder

BUSY = "another process is sending it"


# --- Where MLflow is


def tracking_uri(store: Store) -> str:
    """MLFLOW_TRACKING_URI, with a database's relative path made absolute; else a database in the store.

    Jobs run in another folder, so what starts them hands this value on.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"sqlite:///{store.root / 'mlflow.db'}"
    path = _database(uri)
    return f"sqlite:///{path.absolute()}" if path else uri


def prepare(store: Store) -> str:
    """Create MLflow's database if that is where it logs, once, whoever comes first; return the URI.

    Two processes that open an empty database both migrate it, and most often both fail. So it grows under a lock
    and another name, and appears whole.

    Raises:
        ResourceError: the disk is full.
        SetupError: the folder is forbidden.
    """
    uri = tracking_uri(store)
    path = _database(uri)
    if path is None or _is_made(path):
        return uri
    with Store(path.parent).lock("mlflow", path.name), clear_disk_errors(path):
        if not _is_made(path):
            attempt = path.with_name(f"{path.name}.tmp")
            attempt.unlink(missing_ok=True)  # of a process that was killed here
            create_database(attempt, _artifacts(store))
            os.replace(attempt, path)
            sync_folder(path.parent)
    return uri


def refuse_local_uri_on_cluster(uri: str, nodes: int) -> None:
    """Check that every node can reach MLflow.

    Raises:
        SetupError: `uri` is a file on one machine, and the cluster has several.
    """
    if nodes > 1 and re.match(r"sqlite:|file:|(?![a-z0-9+-]+:)", uri):
        raise SetupError(
            f"MLflow logs to {uri}, a file on one machine, and the cluster has {nodes} nodes",
            "run `mlflow server` on a machine that they all reach and set MLFLOW_TRACKING_URI=http://HOST:5000",
        )


def ui_command(store: Store, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """The command that serves MLflow's pages. `env.quiet()` turns its job runner and its telemetry off.

    Raises:
        UsageError: MLflow is a server already.
    """
    uri = prepare(store)
    if not uri.startswith("sqlite:"):
        raise UsageError(f"MLflow is not in this store but at {uri}", f"open {uri}, or unset MLFLOW_TRACKING_URI")
    where = ["--backend-store-uri", uri, "--artifacts-destination", _artifacts(store)]
    return [sys.executable, "-m", "mlflow", "server", *where, "--host", host, "--port", str(port), "--workers", "1"]


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _is_made(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _artifacts(store: Store) -> str:
    return (store.root / "mlartifacts").as_uri()


# --- The journals' way to it


def replay(store: Store, run_id: str, *, deadline_s: float = 30.0) -> Sent:
    """Send what a journal holds and MLflow does not have yet. It stops and says why, rather than wait or raise.

    A run whose journal ends without a last word, and without a living writer, is marked KILLED.

    Args:
        store: the store.
        run_id: the run's id in it.
        deadline_s: no request begins later than this, and none waits much longer.
    """
    path, sent, ends = journal_path(store.root, run_id), Sent(), time.monotonic() + deadline_s
    with ExitStack() as stack:
        try:
            stack.enter_context(store.lock("journals", run_id, wait=False))
        except UsageError:
            return Sent(problem=BUSY)
        try:
            uri = prepare(store)
            artifacts = _artifacts(store) if _database(uri) else None  # MLflow's own is the current folder
            Pass(path, store, uri, artifacts, ends, sent).run()
        except (Outage, GenflowError, OSError) as error:
            sent.problem = line(error)
    sent.complete = not sent.problem
    return sent


def replay_all(store: Store, run_id: str, *, deadline_s: float = 30.0) -> Sent:
    """Send a run's journal, and those of its children (`<run id>.<child>`) that are behind."""
    ends = time.monotonic() + deadline_s
    total = replay(store, run_id, deadline_s=deadline_s)
    for path in sorted((store.root / "journals").glob(f"{run_id}.*.jsonl")):
        cursor = Cursor.read(path)
        behind = any(entries(path, cursor.offset)) or (cursor.status == "RUNNING" and not has_writer(path))
        if behind and not total.problem:
            total = _sum(total, replay(store, path.stem, deadline_s=ends - time.monotonic()))
    return total


def _sum(total: Sent, sent: Sent) -> Sent:
    problem = total.problem or sent.problem
    return Sent(total.entries + sent.entries, not problem, problem, total.refused + sent.refused)


def forget(store: Store, run_id: str) -> None:
    """Let a run's journals go, and how far they were sent."""
    folder = journal_path(store.root, run_id).parent
    if store.shared:
        for name in store.shared.bucket.list("journals"):
            if name.startswith(f"{run_id}."):
                store.shared.bucket.delete(f"journals/{name}")
    for file in folder.glob(f"{run_id}.*"):
        file.unlink(missing_ok=True)


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
        self.sent = Sent(problem="it was not started")
        self._arguments, self._run_id = (store.url, str(every_s)), run_id
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin. Returns at once."""
        self._told = (self._arguments, dict(os.environ))
        idle, Sender._idle = Sender._idle, None
        if idle and idle[0] == self._told:
            _, self._process, self._socket = idle
        else:
            if idle:
                idle[2].close()
            self._process, self._socket = beside.begin(
                "genflow.tracking", *self._arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is meant for the run
            )  # fmt: skip
        with contextlib.suppress(OSError):  # it has died, and `finish` will see
            self._socket.send(("begin", self._run_id))

    def finish(self, deadline_s: float = 20.0) -> bool:
        """Send what is left. Close the journal before, so that its last word is in it.

        Returns:
            Whether MLflow has everything. If not, `sent.problem` says why, and the journal waits for `sync`.
        """
        if self._process is not None and not self._ask(deadline_s):  # somebody killed it: the journal does not suffer
            self.start()
            self._ask(deadline_s)
        self._process = None
        return self.sent.complete

    def _ask(self, deadline_s: float) -> bool:
        """Have the process send what is left; whether it lived to say so."""
        process = self._process
        assert process is not None
        try:
            self._socket.send(("finish", deadline_s))
            if not self._socket.poll(deadline_s):
                process.kill()
                self.sent = Sent(problem=f"MLflow did not take it within {deadline_s:g} s")
                self._let_go(process)
                return True
            self.sent = self._socket.recv()
        except (EOFError, OSError):
            self._let_go(process)
            self.sent = Sent(problem=f"the sender ended with code {process.returncode}")
            return False
        Sender._idle = self._told, process, self._socket
        return True

    def _let_go(self, process: "subprocess.Popen[bytes]") -> None:
        self._socket.close()
        process.wait()


def _beside(end: str, root: str, every_s: str) -> None:
    """The process of a `Sender`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ray stops a job's whole tree with it; the run's end is still to come
    os.nice(10)  # measured: training beside it keeps its speed
    store, asked = Store(root), Connection(int(end))
    run_id, total = "", Sent()
    wait: float | None = None
    while True:
        what, value = "look", 60.0  # a word, and the seconds that it leaves, or the run that it names
        if asked.poll(wait):
            try:
                what, value = cast(tuple[str, float], asked.recv())
            except (EOFError, OSError):
                what = "end"
        if what == "begin":
            run_id, total, wait = str(value), Sent(), 0.0
            continue
        if not run_id:
            return
        deadline, last = time.monotonic() + value, what != "look"
        sent = replay_all(store, run_id, deadline_s=value)
        while last and sent.problem == BUSY and time.monotonic() < deadline:  # some command's sync was first
            time.sleep(0.1)
            sent = replay_all(store, run_id, deadline_s=deadline - time.monotonic())
        total = Sent(total.entries + sent.entries, sent.complete, sent.problem, total.refused + sent.refused)
        wait = float(every_s)
        if what == "end":
            return
        if what == "finish":
            asked.send(total)
            run_id, wait = "", None


def catch_up(store: Store, run_id: str, *, deadline_s: float = 10.0) -> Sent:
    """Send what a finished run's journal holds and MLflow lacks, if the command that made it was killed at its end."""
    path = journal_path(store.root, run_id)
    if store.shared and not Cursor.read(path).uri:  # another machine's run; this one's database is `sync`'s concern
        return Sent(complete=True)
    if not path.is_file() or not _is_behind(path, without_password(tracking_uri(store))):
        return Sent(complete=True)
    return replay_all(store, run_id, deadline_s=deadline_s)


def sync(store: Store, *, deadline_s: float = 10.0) -> Sent:
    """Send every journal of this store that is behind and that nobody writes. Costs no import if there is none.

    A journal that began at another tracking URI stays there: a changed variable moves nobody's old runs.
    """
    total, ends, uri = Sent(complete=True), time.monotonic() + deadline_s, without_password(tracking_uri(store))
    if store.shared:
        store.shared.level_all(store.root / "journals")
    for path in sorted((store.root / "journals").glob("*.jsonl")):
        if not _is_behind(path, uri) or _is_written_elsewhere(store, path.stem):
            continue
        sent = replay(store, path.stem, deadline_s=ends - time.monotonic())
        total.entries += sent.entries
        total.refused += sent.refused
        if sent.problem and sent.problem != BUSY:
            total.complete, total.problem = False, sent.problem
            break  # it would be the same with the next one
    return total


def _is_written_elsewhere(store: Store, run_id: str) -> bool:
    """Whether another machine is at the run, or at the search that it is a trial of."""
    owners = [f"runs-{run_id}", f"searches-{run_id}", f"searches-{run_id.rpartition('.')[0]}"]
    return bool(store.shared and any(holder(store.shared.bucket, owner) for owner in owners))


def _is_behind(path: Path, uri: str) -> bool:
    cursor, first = Cursor.read(path), opening(path)
    if not first or cursor.uri not in ("", uri) or has_writer(path):
        return False
    unfinished = cursor.journal != first["journal"]["id"] or cursor.status == "RUNNING"
    return unfinished or any(entries(path, cursor.offset))


if __name__ == "__main__":
    _beside(*sys.argv[1:])
