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

import time
from contextlib import ExitStack
from pathlib import Path

from genflow.errors import GenflowError, UsageError
from genflow.storage.lock import current_holder
from genflow.storage.store import Store
from genflow.tracking.database import artifacts_uri, database_path, prepare, tracking_uri
from genflow.tracking.journal import Cursor, entries, has_writer, header, journal_path
from genflow.tracking.mlflow_client import JournalReplay, MlflowUnavailable, SendResult, one_line, without_password

BUSY = "another process is sending it"


def replay(store: Store, run_id: str, *, deadline_s: float = 30.0) -> SendResult:
    """Send what a journal holds and MLflow does not have yet. It stops and says why, rather than wait or raise.

    A run whose journal ends without a last word, and without a living writer, is marked KILLED.

    Args:
        store: the store.
        run_id: the run's id in it.
        deadline_s: no request begins later than this, and none waits much longer.
    """
    path, sent, ends = journal_path(store.root, run_id), SendResult(), time.monotonic() + deadline_s
    with ExitStack() as stack:
        try:
            stack.enter_context(store.lock("journals", run_id, wait=False))
        except UsageError:
            return SendResult(problem=BUSY)
        try:
            uri = prepare(store)
            artifacts = artifacts_uri(store) if database_path(uri) else None  # MLflow's own is the current folder
            JournalReplay(path, store, uri, artifacts, ends, sent).run()
        except (MlflowUnavailable, GenflowError, OSError) as error:
            sent.problem = one_line(error)
    sent.complete = not sent.problem
    return sent


def replay_all(store: Store, run_id: str, *, deadline_s: float = 30.0) -> SendResult:
    """Send a run's journal, and those of its children (`<run id>.<child>`) that are behind."""
    ends = time.monotonic() + deadline_s
    total = replay(store, run_id, deadline_s=deadline_s)
    for path in sorted((store.root / "journals").glob(f"{run_id}.*.jsonl")):
        cursor = Cursor.read(path)
        behind = any(entries(path, cursor.offset)) or (cursor.status == "RUNNING" and not has_writer(path))
        if behind and not total.problem:
            total = _sum(total, replay(store, path.stem, deadline_s=ends - time.monotonic()))
    return total


def _sum(total: SendResult, sent: SendResult) -> SendResult:
    problem = total.problem or sent.problem
    return SendResult(total.entries + sent.entries, not problem, problem, total.rejected + sent.rejected)


def delete_journals(store: Store, run_id: str) -> None:
    """Let a run's journals go, and how far they were sent."""
    folder = journal_path(store.root, run_id).parent
    if store.mirror:
        for name in store.mirror.bucket.list("journals"):
            if name.startswith(f"{run_id}."):
                store.mirror.bucket.delete(f"journals/{name}")
    for file in folder.glob(f"{run_id}.*"):
        file.unlink(missing_ok=True)


def catch_up(store: Store, run_id: str, *, deadline_s: float = 10.0) -> SendResult:
    """Send what a finished run's journal holds and MLflow lacks, if the command that made it was killed at its end."""
    path = journal_path(store.root, run_id)
    if store.mirror and not Cursor.read(path).uri:  # another machine's run; this one's database is `sync`'s concern
        return SendResult(complete=True)
    if not path.is_file() or not _is_behind(path, without_password(tracking_uri(store))):
        return SendResult(complete=True)
    return replay_all(store, run_id, deadline_s=deadline_s)


def sync(store: Store, *, deadline_s: float = 10.0) -> SendResult:
    """Send every journal of this store that is behind and that nobody writes. Costs no import if there is none.

    A journal that began at another tracking URI stays there: a changed variable moves nobody's old runs.
    """
    total, ends, uri = SendResult(complete=True), time.monotonic() + deadline_s, without_password(tracking_uri(store))
    if store.mirror:
        store.mirror.sync_all(store.root / "journals")
    for path in sorted((store.root / "journals").glob("*.jsonl")):
        if not _is_behind(path, uri) or _is_written_elsewhere(store, path.stem):
            continue
        sent = replay(store, path.stem, deadline_s=ends - time.monotonic())
        total.entries += sent.entries
        total.rejected += sent.rejected
        if sent.problem and sent.problem != BUSY:
            total.complete, total.problem = False, sent.problem
            break  # it would be the same with the next one
    return total


def _is_written_elsewhere(store: Store, run_id: str) -> bool:
    """Whether another machine is at the run, or at the search that it is a trial of."""
    owners = [f"runs-{run_id}", f"searches-{run_id}", f"searches-{run_id.rpartition('.')[0]}"]
    return bool(store.mirror and any(current_holder(store.mirror.bucket, owner) for owner in owners))


def _is_behind(path: Path, uri: str) -> bool:
    cursor, first = Cursor.read(path), header(path)
    if not first or cursor.uri not in ("", uri) or has_writer(path):
        return False
    unfinished = cursor.journal != first["journal"]["id"] or cursor.status == "RUNNING"
    return unfinished or any(entries(path, cursor.offset))
