"""Send a job: run it here in a child process, or through the Ray Jobs API of a cluster. One road for both.

A job is a document (recipe and inputs) and the name of a stage; what comes back are events (see `events`), the
last of which is its result or its error. `genflow/` and `jobs/` name each other only by strings: the process
boundary is a parcel and a command line, `python -m jobs.<stage> recipe.yaml`.
"""

import os
import re
import secrets
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from genflow.errors import ClusterError, GenflowError, SetupError, Stopped, UsageError
from genflow.launch import bundle, preflight
from genflow.launch.local import Document, OnEvent, failure
from genflow.launch.preflight import Check
from genflow.launch.ray_dashboard import Dashboard
from genflow.launch.ray_jobs import ENDED, PROBE, Job, Jobs
from genflow.recipe.schema import Cluster
from genflow.storage.s3 import PUBLIC
from genflow.storage.store import MANIFEST, Store
from genflow.system import events
from genflow.tracking import database

LAST_LINES = 30  # of a job's own output, in which to look for the reason of a death without a word


# --- On a cluster


class _JobDied(GenflowError):  # noqa: N818  said of a job
    """A job ended without a word: its process, or its machine, is gone."""


def run_on_cluster(
    stage: str, document: Document, store: Store, on_event: OnEvent,
    *, address: str = "", detach: bool = False, verbose: bool = False,
) -> Document:  # fmt: skip
    """Run a job on a Ray cluster and return its result. The same job that runs there already is followed instead.

    Args:
        stage: the job's name: `jobs/<stage>.py`.
        document: `{"recipe": ..., "inputs": ...}`.
        store: where artifacts go: a folder that every node sees under this path.
        on_event: called with every event but the last.
        address: of the cluster's dashboard; empty: the usual Ray variables, or this machine.
        detach: return as soon as it is submitted.
        verbose: whether the job's own output is shown.

    Returns:
        The job's result; or a `genflow.job/1` document, if it was left to itself, by `detach` or Ctrl-C.

    Raises:
        UsageError: no such address.
        ClusterError: the cluster is unreachable, refuses, or is of another version.
        ResourceError: it can never hold the workers.
        GenflowError: the job's error, of its own kind; or that it died, more often than the recipe forgives.
    """
    jobs = Jobs(Dashboard.at(address))
    variables = _job_environment(store, verbose)
    preflight.raise_first_failure(_checks(jobs, document, store))
    retries = document.get("recipe", {}).get("cluster", {}).get("retries", Cluster().retries)
    for left in range(retries, -1, -1):
        id = _submit(jobs, stage, document, store, variables, on_event)
        if detach:
            return _detached(jobs, id, on_event)
        try:
            return _wait(jobs, id, store, on_event, verbose)
        except _JobDied as error:
            if not left:
                raise GenflowError(error.message, error.hint) from error
            _note(on_event, f"{error.message}; starting it again, {left} more times at most")
            document = {**document, "inputs": {**document.get("inputs", {}), "fresh": False}}
    raise AssertionError("unreachable")


def attach(address: str, reference: str, on_event: OnEvent, *, verbose: bool = False) -> Document:
    """Follow a job that was submitted before, as `run_on_cluster` does."""
    jobs = Jobs(Dashboard.at(address))
    return _wait(jobs, jobs.find(reference)["id"], Store(), on_event, verbose)


def checks(address: str) -> Iterator[Check]:
    """What is checked before a job is sent, one line each, in order.

    Raises:
        UsageError: no such address.
    """
    yield from _checks(Jobs(Dashboard.at(address)), {}, Store())


def _checks(jobs: Jobs, document: Document, store: Store) -> Iterator[Check]:
    return preflight.checks(jobs.dashboard, document, store, lambda inputs: _probe(jobs, inputs, store))


def _probe(jobs: Jobs, inputs: Document, store: Store) -> Document:
    """Run `jobs/probe.py` on the cluster: a job of its own, whose parcel is not kept."""
    id = f"probe-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory(prefix="genflow-") as folder:
        laid = bundle.write({"inputs": inputs}, Path(folder) / "parcel")
        jobs.submit(id, f"python -m jobs.probe {bundle.RECIPE}", laid, _job_environment(store, False), PROBE)
    last, said = _follow(jobs, id, lambda event: None, lambda line: None)
    if last and last["event"] == "result":
        return last["document"]
    raise _job_error(jobs.get(id), last, said)


def jobs_list(address: str) -> list[Job]:
    """A cluster's jobs, the newest first: id, stage, status, started, seconds, message, exit_code."""
    return Jobs(Dashboard.at(address)).all()


def jobs_logs(address: str, reference: str, *, follow: bool = False) -> Iterator[str]:
    """What a job says, line by line with the line's end; with `follow`, until it ends."""
    jobs = Jobs(Dashboard.at(address))
    id = jobs.find(reference)["id"]
    if not follow:
        yield jobs.log(id)
        return
    for line in jobs.follow(id, lambda text: print(text, file=sys.stderr)):
        yield f"{line}\n"


def jobs_stop(address: str, reference: str) -> Job:
    """Ask a job to save and end, and wait until it has; its last state.

    Raises:
        UsageError: there is no such job, or it has ended already.
    """
    jobs = Jobs(Dashboard.at(address))
    job = jobs.find(reference)
    if not jobs.stop(job["id"]):
        raise UsageError(f"job {job['id']} is not running: {job['status']}", "genflow jobs ls")
    while (job := jobs.get(job["id"]))["status"] not in ENDED:
        time.sleep(0.5)
    return job


def _job_environment(store: Store, verbose: bool) -> dict[str, str]:
    """The job's environment. Whoever reaches the dashboard reads it: it holds no secret."""
    variables = {
        "GENFLOW_STORE": store.url,
        **{name: os.environ[name] for name in PUBLIC if os.environ.get(name)},
        "GENFLOW_CLUSTER": "1",
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",  # a checkpoint may be under way
    }
    if os.environ.get("MLFLOW_TRACKING_URI"):
        variables["MLFLOW_TRACKING_URI"] = database.tracking_uri(store)
    return variables | ({"GENFLOW_VERBOSE": "1"} if verbose else {})


def _submit(
    jobs: Jobs, stage: str, document: Document, store: Store, variables: dict[str, str], on_event: OnEvent
) -> str:
    """Start the job, unless it runs already; its id: what it makes, and the number of the attempt."""
    name = f"{stage}-{bundle.identity(document)}"
    base = document.get("inputs", {}).get("run") or name
    for _ in range(3):  # two commands may start at one moment
        attempts = [job for job in jobs.all() if re.fullmatch(rf"{re.escape(base)}-\d+", job["id"])]
        running = [job["id"] for job in attempts if job["status"] not in ENDED]
        if running:
            _note(on_event, f"job {running[0]} is under way: following it")
            return running[0]
        id = f"{base}-{max((int(job['id'].rpartition('-')[2]) for job in attempts), default=0) + 1}"
        try:
            entrypoint = f"python -m jobs.{stage} {bundle.RECIPE}"
            jobs.submit(id, entrypoint, bundle.save(document, store, name), variables, stage)
        except ClusterError:
            if id not in [job["id"] for job in jobs.all()]:
                raise
            continue
        _note(on_event, f"job {id}  {jobs.dashboard.address}/#/jobs/{id}")
        return id
    raise ClusterError(f"other commands submit {base} all the time", "genflow jobs ls")


def _wait(jobs: Jobs, id: str, store: Store, on_event: OnEvent, verbose: bool) -> Document:
    """Show what a job says until it ends; return its result."""

    def overhear(line: str) -> None:
        if verbose:
            print(line, file=sys.stderr)

    try:
        last, said = _follow(jobs, id, on_event, overhear)
    except KeyboardInterrupt:
        return _detached(jobs, id, on_event)
    if last and last["event"] == "result":
        return _with_local_path(last["document"], store, on_event)
    raise _job_error(jobs.get(id), last, said)


def _follow(
    jobs: Jobs, id: str, on_event: OnEvent, overhear: Callable[[str], None]
) -> tuple[events.Event | None, deque[str]]:
    """Follow a job until it ends: its last word, and the last lines that were no events."""
    last: events.Event | None = None
    said: deque[str] = deque(maxlen=LAST_LINES)
    for line in jobs.follow(id, lambda text: _note(on_event, text)):
        event = events.parse(line)
        if event is None:
            said.append(line)
            overhear(line)
        elif event["event"] in ("result", "error"):
            last = event
        else:
            on_event(event)
    return last, said


def _job_error(job: Job, last: events.Event | None, said: deque[str]) -> GenflowError:
    """Why a job ended without a result."""
    if job["status"] == "STOPPED":
        return Stopped(f"job {job['id']} was stopped", "run the same command again: it goes on")
    words = "\n".join([*said, last["message"] if last else "", job["message"]])
    if lacking := re.search(r"No module named '?([\w.]+)|python: not found", words):
        return SetupError(
            f"the cluster's `python` lacks {lacking[1]}" if lacking[1] else "the cluster finds no `python`",
            "install genflow's requirements on its nodes, and start Ray with that environment first on PATH",
        )
    if last:
        return failure(last, job["exit_code"] or 1)
    code = job["exit_code"]
    kind = _JobDied if code is None or code < 0 or code > 128 else GenflowError  # a signal's end may be another's doing
    how = job["message"].partition(", last available")[0] or job["status"]
    return kind(f"job {job['id']} died without a word: {how}", f"genflow jobs logs {job['id']}")


def _detached(jobs: Jobs, id: str, on_event: OnEvent) -> Document:
    """What is known of a job that goes on by itself."""
    address = jobs.dashboard.address
    try:
        status = jobs.get(id)["status"]
    except ClusterError:
        status = "UNKNOWN"
    stop = f"genflow jobs stop {id} --address {address}"
    _note(on_event, f"job {id} goes on by itself; the same command follows it again, and `{stop}` stops it")
    return {"schema": "genflow.job/1", "job": id, "status": status, "address": address,
            "dashboard": f"{address}/#/jobs/{id}"}  # fmt: skip


def _with_local_path(result: Document, store: Store, on_event: OnEvent) -> Document:
    """The result, with a warning if what it names does not lie where this machine looks for it."""
    path = Path(result.get("path") or "/")
    if "path" in result and store.shared:  # it named the mirror of the machine that made it
        artifact = store.get(path.parent.name, path.name)
        return {**result, "path": str(artifact.path)} if artifact else result
    if "path" in result and not (path / MANIFEST).is_file():
        on_event({"event": "warning", "message": f"{path} lies on the cluster, and this machine does not see it",
                  "hint": "mount the store's folder here, too, under the same path"})  # fmt: skip
    return result


def _note(on_event: OnEvent, text: str) -> None:
    on_event({"event": "note", "message": text})
