"""Run a job on a Ray cluster through the Ray Jobs API.

A job is the name of a stage and a document (recipe and inputs). It reports events (see `events`); the last event is its
result or its error. The process boundary is a bundle and the command `python -m jobs.<stage> recipe.yaml`: `genflow/`
and `jobs/` refer to each other only by strings.
"""

import os
import re
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from genflow.errors import ClusterError, GenflowError, SetupError, Stopped, UsageError
from genflow.launch import bundle, preflight
from genflow.launch.local import OnEvent, failure
from genflow.launch.preflight import Check
from genflow.launch.ray_dashboard import Dashboard
from genflow.launch.ray_jobs import ENDED, PROBE, Job, Jobs
from genflow.recipe.schema import Cluster
from genflow.storage.s3 import FORWARDED_VARIABLES
from genflow.storage.store import MANIFEST, Store
from genflow.storage.temporary import private_folder
from genflow.system import events
from genflow.system.documents import Json
from genflow.tracking import database

LAST_LINES = 30  # of a job's output, searched for the reason if it exits without reporting an error


class _JobDied(GenflowError):  # noqa: N818  describes the job
    """A job exited without reporting an error, because its process or its machine is gone."""


def run_on_cluster(
    stage: str, document: Json, store: Store, on_event: OnEvent,
    *, address: str = "", detach: bool = False, verbose: bool = False,
) -> Json:  # fmt: skip
    """Run a job on a Ray cluster and return its result. If the same job is already running, follow it instead.

    Args:
        stage: name of the job: `jobs/<stage>.py`.
        document: `{"recipe": ..., "inputs": ...}`.
        store: where the job writes artifacts: a folder that every node has under the same path.
        on_event: called with every event except the last.
        address: address of the dashboard; empty uses RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine.
        detach: return as soon as the job is submitted.
        verbose: whether to show the output of the job.

    Returns:
        The result of the job; after `detach` or Ctrl-C a `genflow.job/1` document.

    Raises:
        UsageError: the address is invalid.
        ClusterError: the cluster is unreachable, rejects the request, or has another version of Ray or Python.
        ResourceError: the cluster can never run the workers.
        GenflowError: the error of the job, with its own class; or the job died more often than `cluster.retries`.
    """
    jobs = Jobs(Dashboard.at(address))
    variables = _job_environment(store, verbose)
    preflight.raise_first_failure(_checks(jobs, document, store))
    retries = document.get("recipe", {}).get("cluster", {}).get("retries", Cluster().retries)
    for remaining in range(retries, -1, -1):
        id = _submit(jobs, stage, document, store, variables, on_event)
        if detach:
            return _detached(jobs, id, on_event)
        try:
            return _wait(jobs, id, store, on_event, verbose)
        except _JobDied as error:
            if not remaining:
                raise GenflowError(error.message, error.hint) from error
            _note(on_event, f"{error.message}; restarting it (retries left: {remaining - 1})")
            document = {**document, "inputs": {**document.get("inputs", {}), "fresh": False}}
    raise AssertionError("unreachable")


def attach(address: str, reference: str, on_event: OnEvent, *, verbose: bool = False) -> Json:
    """Follow a submitted job until it ends, as `run_on_cluster` does."""
    jobs = Jobs(Dashboard.at(address))
    return _wait(jobs, jobs.find(reference)["id"], Store(), on_event, verbose)


def checks(address: str) -> Iterator[Check]:
    """The checks of a cluster before a job is sent, in order.

    Raises:
        UsageError: the address is invalid.
    """
    yield from _checks(Jobs(Dashboard.at(address)), {}, Store())


def _checks(jobs: Jobs, document: Json, store: Store) -> Iterator[Check]:
    return preflight.checks(jobs.dashboard, document, store, lambda inputs: _probe(jobs, inputs, store))


def _probe(jobs: Jobs, inputs: Json, store: Store) -> Json:
    """Run `jobs/probe.py` on the cluster as a separate job; its bundle is not saved."""
    id = f"probe-{secrets.token_hex(8)}"
    with private_folder("genflow-") as folder:
        written = bundle.write({"inputs": inputs}, folder / "bundle")
        jobs.submit(id, f"python -m jobs.probe {bundle.RECIPE}", written, _job_environment(store, False), PROBE)
    last, output = _follow(jobs, id, lambda event: None, lambda line: None)
    if last and last["event"] == "result":
        return last["document"]
    raise _job_error(jobs.get(id), last, output)


def jobs_list(address: str) -> list[Job]:
    """The jobs of a cluster, newest first: id, stage, status, started, seconds, message, exit_code."""
    return Jobs(Dashboard.at(address)).all()


def jobs_logs(address: str, reference: str, *, follow: bool = False) -> Iterator[str]:
    """The log of a job so far as one text; with `follow`, lines with line ends until the job ends."""
    jobs = Jobs(Dashboard.at(address))
    id = jobs.find(reference)["id"]
    if not follow:
        yield jobs.log(id)
        return
    for line in jobs.follow(id, lambda text: print(text, file=sys.stderr)):
        yield f"{line}\n"


def jobs_stop(address: str, reference: str) -> Job:
    """Request that a job saves and stops, wait until it has ended, and return its final state.

    Raises:
        UsageError: there is no such job, or it has already ended.
    """
    jobs = Jobs(Dashboard.at(address))
    job = jobs.find(reference)
    if not jobs.stop(job["id"]):
        raise UsageError(f"job {job['id']} is not running; its status is {job['status']}", "genflow jobs ls")
    while (job := jobs.get(job["id"]))["status"] not in ENDED:
        time.sleep(0.5)
    return job


def _job_environment(store: Store, verbose: bool) -> dict[str, str]:
    """The job's environment variables. They contain no secrets, because users of the dashboard can read them."""
    variables = {
        "GENFLOW_STORE": store.url,
        **{name: os.environ[name] for name in FORWARDED_VARIABLES if os.environ.get(name)},
        "GENFLOW_CLUSTER": "1",
        "FORWARDED_ALLOW_IPS": "",  # a served model must not read a caller's address from the caller's own headers
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",  # time to finish writing a checkpoint
    }
    if os.environ.get("MLFLOW_TRACKING_URI"):
        variables["MLFLOW_TRACKING_URI"] = database.tracking_uri(store)
    return variables | ({"GENFLOW_VERBOSE": "1"} if verbose else {})


def _submit(
    jobs: Jobs, stage: str, document: Json, store: Store, variables: dict[str, str], on_event: OnEvent
) -> str:
    """Start the job unless it is already running; return its id: the artifact's id and the attempt number."""
    name = f"{stage}-{bundle.identity(document)}"
    base = document.get("inputs", {}).get("run") or name
    for _ in range(3):  # another command may submit the same job at the same time
        attempts = [job for job in jobs.all() if re.fullmatch(rf"{re.escape(base)}-\d+", job["id"])]
        running = [job["id"] for job in attempts if job["status"] not in ENDED]
        if running:
            _note(on_event, f"job {running[0]} is already running; following it")
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
    raise ClusterError(f"other commands keep submitting the job {base}", "genflow jobs ls")


def _wait(jobs: Jobs, id: str, store: Store, on_event: OnEvent, verbose: bool) -> Json:
    """Follow a job until it ends and return its result."""

    def show_output(line: str) -> None:
        if verbose:
            print(line, file=sys.stderr)

    try:
        last, output = _follow(jobs, id, on_event, show_output)
    except KeyboardInterrupt:
        return _detached(jobs, id, on_event)
    if last and last["event"] == "result":
        return _with_local_path(last["document"], store, on_event)
    raise _job_error(jobs.get(id), last, output)


def _follow(
    jobs: Jobs, id: str, on_event: OnEvent, on_output: Callable[[str], None]
) -> tuple[events.Event | None, deque[str]]:
    """Follow a job until it ends; return its last event and the last lines of its other output."""
    last: events.Event | None = None
    output: deque[str] = deque(maxlen=LAST_LINES)
    for line in jobs.follow(id, lambda text: _note(on_event, text)):
        event = events.parse(line)
        if event is None:
            output.append(line)
            on_output(line)
        elif event["event"] in ("result", "error"):
            last = event
        else:
            on_event(event)
    return last, output


def _job_error(job: Job, last: events.Event | None, output: deque[str]) -> GenflowError:
    """The error of a job that ended without a result."""
    if job["status"] == "STOPPED":
        return Stopped(f"job {job['id']} was stopped", "run the same command again to resume")
    text = "\n".join([*output, last["message"] if last else "", job["message"]])
    if missing := re.search(r"No module named '?([\w.]+)|python: not found", text):
        return SetupError(
            f"the cluster's `python` has no module {missing[1]}"
            if missing[1]
            else "the cluster has no `python` on PATH",
            "install genflow's requirements on its nodes, and start Ray with that environment first on PATH",
        )
    if last:
        return failure(last, job["exit_code"] or 1)
    code = job["exit_code"]
    kind = (
        _JobDied if code is None or code < 0 or code > 128 else GenflowError
    )  # a signal often comes from outside the job, so a retry may succeed
    how = job["message"].partition(", last available")[0] or job["status"]
    return kind(f"job {job['id']} exited without reporting an error: {how}", f"genflow jobs logs {job['id']}")


def _detached(jobs: Jobs, id: str, on_event: OnEvent) -> Json:
    """Describe a job that continues to run without this command."""
    address = jobs.dashboard.address
    try:
        status = jobs.get(id)["status"]
    except ClusterError:
        status = "UNKNOWN"
    stop = f"genflow jobs stop {id} --address {address}"
    _note(on_event, f"job {id} continues on the cluster; run the same command to follow it, or `{stop}` to stop it")
    return {"schema": "genflow.job/1", "job": id, "status": status, "address": address,
            "dashboard": f"{address}/#/jobs/{id}"}  # fmt: skip


def _with_local_path(result: Json, store: Store, on_event: OnEvent) -> Json:
    """The result with a path on this machine; warn if the artifact is not visible here."""
    path = Path(result.get("path") or "/")
    if "path" in result and store.mirror:  # the result names the local mirror of another machine
        artifact = store.get(path.parent.name, path.name)
        return {**result, "path": str(artifact.path)} if artifact else result
    if "path" in result and not (path / MANIFEST).is_file():
        on_event({"event": "warning", "message": f"{path} is on the cluster and not visible on this machine",
                  "hint": "mount the folder of the store on this machine under the same path"})  # fmt: skip
    return result


def _note(on_event: OnEvent, text: str) -> None:
    on_event({"event": "note", "message": text})
