"""Send journals to MLflow.

    training thread ──> journal (a file) ──> Sender (a helper process of the run) ──> MLflow
                              └────────────> sync (the next command, after an outage)

The sender is a process and not a thread, because MLflow's import and its batches take seconds of pure Python, during
which a thread would hold the interpreter lock (docs/decisions/0005-metrics-go-through-a-journal.md).

    <store>/mlflow.db, mlartifacts/      unless MLFLOW_TRACKING_URI is set
    <store>/journals/                    <run id>.jsonl, <run id>.cursor.json

For a store in a bucket, `<store>` is this machine's mirror. The journals are synchronized with the bucket; the database
belongs to this machine, and `sync` fills it from the journals of all machines. Only entries that are in the bucket's
journal are sent, so that a run that resumes on another machine sends nothing twice.
"""

import math
import time
from contextlib import ExitStack
from pathlib import Path

from genflow.errors import GenflowError, UsageError
from genflow.storage.files import dead_leftovers, remove_leftover
from genflow.storage.lock import current_holder
from genflow.storage.store import Store
from genflow.tracking.database import artifacts_uri, check, database_path, made_at, prepare, tracking_uri
from genflow.tracking.journal import Cursor, entries, has_writer, header, journal_path
from genflow.tracking.journal_replay import JournalReplay, SendResult
from genflow.tracking.mlflow_client import MlflowUnavailable, Requests, one_line, without_password

BUSY = "another process is sending the journal"


def replay(
    store: Store, run_id: str, *, deadline_s: float = 30.0, requests: Requests | None = None
) -> SendResult:  # fmt: skip
    """Send the entries of a journal that MLflow lacks. On an error it stops and returns the reason.

    A run is marked KILLED if its journal has no final status and no writer. What was sent is never sent again: every
    replay starts at the cursor.

    Args:
        store: the store.
        run_id: the run's id in the store.
        deadline_s: seconds to wait for an answer of the server. Work on this machine, such as importing MLflow and
            packing a model, does not count, and a server that answers is given all entries.
        requests: receives what the replay is waiting for.
    """
    path, sent = journal_path(store.root, run_id), SendResult()
    with ExitStack() as stack:
        try:
            stack.enter_context(store.lock("journals", run_id, wait=False))
        except UsageError:
            return SendResult(problem=BUSY)
        except GenflowError as error:  # the store is read-only, or its disk is full
            return SendResult(problem=one_line(error))
        for leftover in dead_leftovers(path.parent):  # of a process that was killed while it wrote a cursor
            remove_leftover(leftover)
        try:
            uri = prepare(store)
            check(uri)
            artifacts = artifacts_uri(store) if database_path(uri) else None  # MLflow's default is the current folder
            JournalReplay(path, store, uri, artifacts, deadline_s, sent, requests or Requests()).run()
        except (MlflowUnavailable, GenflowError, OSError) as error:
            sent.problem = one_line(error)
    sent.complete = not sent.problem
    return sent


def replay_all(
    store: Store, run_id: str, *, deadline_s: float = 30.0, requests: Requests | None = None
) -> SendResult:  # fmt: skip
    """Send a run's journal, and the journals of its children (`<run id>.<child>`) that have unsent entries.

    After a journal that could not be sent, it does not wait for the server again.
    """
    total = replay(store, run_id, deadline_s=deadline_s, requests=requests)
    for path in sorted((store.root / "journals").glob(f"{run_id}.*.jsonl")):
        cursor = Cursor.read(path)
        behind = any(entries(path, cursor.offset)) or (cursor.status == "RUNNING" and not has_writer(path))
        if behind and not total.problem:
            total = _sum(total, replay(store, path.stem, deadline_s=deadline_s, requests=requests))
    return total


def _sum(total: SendResult, sent: SendResult) -> SendResult:
    problem = total.problem or sent.problem
    return SendResult(total.entries + sent.entries, not problem, problem, total.rejected + sent.rejected)


def catch_up(store: Store, run_id: str, *, deadline_s: float = 10.0) -> SendResult:
    """Send the rest of a finished run's journal, in case the command that trained the run was killed before that."""
    if store.mirror and not Cursor.read(journal_path(store.root, run_id)).uri:  # trained elsewhere; left to `sync`
        return SendResult(complete=True)
    if not is_behind(store, run_id):
        return SendResult(complete=True)
    return replay_when_free(store, run_id, deadline_s=deadline_s)


def is_behind(store: Store, run_id: str) -> bool:
    """Whether MLflow lacks entries of a run's journal."""
    path, uri = journal_path(store.root, run_id), tracking_uri(store)
    return path.is_file() and _is_behind(path, without_password(uri), made_at(uri))


def replay_when_free(
    store: Store, run_id: str, *, deadline_s: float = 30.0, requests: Requests | None = None
) -> SendResult:  # fmt: skip
    """`replay_all`, after waiting at most `deadline_s` for another process that is sending the same journal."""
    ends = time.monotonic() + deadline_s
    while True:
        sent = replay_all(store, run_id, deadline_s=deadline_s, requests=requests)
        if sent.problem != BUSY or time.monotonic() > ends:
            return sent
        time.sleep(0.1)


def sync(store: Store, *, deadline_s: float = 10.0, limit_s: float = math.inf) -> SendResult:
    """Send every journal of this store that has unsent entries and no writer. Imports MLflow only if there is one.

    A journal that was partly sent to another tracking URI is skipped: changing the variable does not move old runs.
    After a journal that could not be sent, it does not wait for the server again.

    Args:
        store: the store.
        deadline_s: seconds to wait for an answer of the server.
        limit_s: total seconds of requests, for a slow server that keeps answering. The next call continues there.
    """
    total, uri, made = SendResult(complete=True), without_password(tracking_uri(store)), made_at(tracking_uri(store))
    requests = Requests(limit_s=limit_s)
    if store.mirror:
        store.mirror.sync_all(store.root / "journals")
    for path in sorted((store.root / "journals").glob("*.jsonl")):
        if not _is_behind(path, uri, made) or _is_written_elsewhere(store, path.stem):
            continue
        sent = replay(store, path.stem, deadline_s=deadline_s, requests=requests)
        total.entries += sent.entries
        total.rejected += sent.rejected
        if sent.problem and sent.problem != BUSY:
            total.complete, total.problem = False, sent.problem
            break  # the next journal would fail in the same way
    return total


def newest_experiment(store: Store) -> str:
    """MLflow's id of the experiment of the journal that was written last; empty if none was sent."""
    uri = without_password(tracking_uri(store))
    paths = sorted((store.root / "journals").glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    cursors = (Cursor.read(path) for path in paths)
    return next((cursor.experiment for cursor in cursors if cursor.uri == uri and cursor.experiment), "")


def _is_written_elsewhere(store: Store, run_id: str) -> bool:
    """Whether another machine is working on the run, or on the search that the run is a trial of."""
    owners = [f"runs-{run_id}", f"searches-{run_id}", f"searches-{run_id.rpartition('.')[0]}"]
    return bool(store.mirror and any(current_holder(store.mirror.bucket, owner) for owner in owners))


def _is_behind(path: Path, uri: str, made: float) -> bool:
    """Whether MLflow lacks entries of a journal without a writer; a database newer than the cursor lacks them all."""
    cursor, first = Cursor.read(path), header(path)
    if not first or cursor.uri not in ("", uri) or has_writer(path):
        return False
    unfinished = cursor.journal != first["journal"]["id"] or cursor.status == "RUNNING"
    return unfinished or any(entries(path, cursor.offset)) or path.with_suffix(".cursor.json").stat().st_mtime < made
