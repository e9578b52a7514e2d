"""Jobs on a Ray cluster: submit, list and stop them, and follow their logs across lost connections.

This is the only file of `genflow/` that imports ray, and it does so inside a function, because the import takes a
second. Ray's client uploads bundles and streams logs; everything else is a request to the dashboard.
"""

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genflow.errors import ClusterError, UsageError
from genflow.launch.ray_dashboard import Dashboard, NotFound, Unreachable, headers
from genflow.system import environment

PROBE = "probe"  # the stage of the probe job, which `genflow jobs ls` does not list
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
POLL_S = 0.3  # poll interval while a log is empty; Ray's log stream would begin after 3 s
SILENCE_S = 60.0  # without output for this long, check whether the log stream is broken
RECONNECT_S = 300.0  # time to wait for a cluster that stopped answering

Job = dict[str, Any]


@dataclass(frozen=True)
class Jobs:
    """The jobs of a cluster."""

    dashboard: Dashboard

    def all(self) -> list[Job]:
        """All submitted jobs, newest first."""
        submitted = [answer for answer in self.dashboard.request("/api/jobs/") if answer.get("submission_id")]
        jobs = [_job(answer) for answer in sorted(submitted, key=lambda answer: -(answer.get("start_time") or 0))]
        return [job for job in jobs if job["stage"] != PROBE]

    def get(self, id: str) -> Job:
        """One job.

        Raises:
            NotFound: no job has this id.
        """
        return _job(self.dashboard.request(f"/api/jobs/{id}", missing=f"job {id}"))

    def find(self, reference: str) -> Job:
        """Find a job by id, id prefix or `latest`; among several attempts of the same job, the newest.

        Raises:
            UsageError: no job matches, or several different jobs match.
        """
        jobs = self.all()
        if reference == "latest" and jobs:
            return jobs[0]
        matches = [job for job in jobs if job["id"] == reference] or [
            job for job in jobs if reference and job["id"].startswith(reference)
        ]
        if len({job["id"].rpartition("-")[0] for job in matches}) == 1:
            return matches[0]
        known = ", ".join(job["id"] for job in (matches or jobs)[:8]) or "none"
        if matches:
            raise UsageError(f"job {reference!r} is ambiguous; it matches: {known}", "give more characters of the id")
        raise UsageError(f"job {reference!r} does not exist; jobs on the cluster: {known}", "genflow jobs ls")

    def log(self, id: str) -> str:
        """The complete log of a job."""
        return str(self.dashboard.request(f"/api/jobs/{id}/logs", missing=f"job {id}")["logs"] or "")

    def stop(self, id: str) -> bool:
        """Request that a job saves and stops; whether it was running."""
        return bool(self.dashboard.request(f"/api/jobs/{id}/stop", "POST", missing=f"job {id}")["stopped"])

    def submit(self, id: str, entrypoint: str, folder: Path, variables: Mapping[str, str], stage: str) -> None:
        """Upload a bundle and start a job with it as working folder.

        Raises:
            ClusterError: the cluster rejects the job.
        """
        environment = {"working_dir": str(folder), "env_vars": dict(variables)}
        try:
            self._client().submit_job(
                entrypoint=entrypoint, submission_id=id, runtime_env=environment, metadata={"genflow": stage}
            )
        except Exception as error:  # from requests or Ray, or a RuntimeError with the server's traceback
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            raise ClusterError(
                f"the cluster rejected the job: {lines[-1] if lines else type(error).__name__}"
            ) from error

    def follow(self, id: str, notify: Callable[[str], None]) -> Iterator[str]:
        """Yield the log of a job line by line until the job ends; reconnect after lost connections.

        Args:
            id: id of the job.
            notify: called with a message when the connection is lost or restored.

        Raises:
            ClusterError: the cluster does not return within RECONNECT_S seconds, or returns without the job.
        """
        seen, rest, lost = 0, "", 0.0
        while True:
            try:
                ended = (
                    self.get(id)["status"] in ENDED
                )  # read before the log, so that the log of an ended job is complete
                for text in [self.log(id)[seen:]] if ended else self._chunks(id, seen):
                    if lost:
                        lost = 0.0
                        notify("the cluster answers again")
                    seen += len(text)
                    *whole, rest = (rest + text).split("\n")
                    yield from whole
                if ended:
                    break
            except NotFound as error:
                raise ClusterError(
                    f"the cluster no longer has the job {id}: its head node was restarted",
                    "run the same command again to resume",
                ) from error
            except Unreachable as error:
                if not lost:
                    lost = time.monotonic()
                    notify(f"lost the connection to the cluster ({error.message}); reconnecting")
                if time.monotonic() - lost > RECONNECT_S:
                    raise ClusterError(
                        error.message, f"the job may still be running; check later: genflow jobs logs {id}"
                    ) from error
                time.sleep(1)
        if rest:
            yield rest

    def _chunks(self, id: str, seen: int) -> Iterator[str]:
        """Yield the log after its first `seen` characters, until the job ends or the log stream breaks."""
        while not (text := self.log(id)):
            if self.get(id)["status"] in ENDED:
                return
            time.sleep(POLL_S)
        yield text[seen:]
        seen = max(seen, len(text))
        arrived = 0
        chunks = self._tail(id)
        while True:
            try:
                chunk = chunks.get(timeout=SILENCE_S)
            except queue.Empty:
                if len(self.log(id)) > seen:
                    return  # the log grows, but the stream is silent: reconnect
                continue
            if chunk is None:
                return
            if isinstance(chunk, Exception):
                raise Unreachable(f"the log stream of {id} broke: {type(chunk).__name__}") from chunk
            fresh = chunk[max(0, seen - arrived) :]  # a new stream repeats the log from its beginning
            arrived += len(chunk)
            if fresh:
                seen = arrived
                yield fresh

    def _tail(self, id: str) -> "queue.Queue[str | Exception | None]":
        """Start a thread that streams the log of a job into a queue, followed by None or an exception."""
        chunks: queue.Queue[str | Exception | None] = queue.Queue()
        client = self._client()

        async def stream() -> None:
            async for text in client.tail_job_logs(id):
                chunks.put(text)

        def run() -> None:
            try:
                asyncio.run(stream())
                chunks.put(None)
            except Exception as error:
                chunks.put(error)

        threading.Thread(target=run, name="tail", daemon=True).start()
        return chunks

    def _client(self) -> Any:
        """Ray's job client. Set RAY_API_SERVER_ADDRESS, because it overrides the client's argument."""
        environment.set_defaults()
        before = os.environ.get("RAY_API_SERVER_ADDRESS")
        os.environ["RAY_API_SERVER_ADDRESS"] = self.dashboard.address
        try:
            from ray.job_submission import JobSubmissionClient

            for name in ("", ".dashboard.modules.job.sdk", ".dashboard.modules.dashboard_sdk"):
                logging.getLogger(f"ray{name}").setLevel(logging.ERROR)
            return JobSubmissionClient(self.dashboard.address, headers=headers())
        except Exception as error:
            raise Unreachable(f"no answer from {self.dashboard.address}: {type(error).__name__}") from error
        finally:
            os.environ.pop("RAY_API_SERVER_ADDRESS")
            if before is not None:
                os.environ["RAY_API_SERVER_ADDRESS"] = before


def _job(answer: dict[str, Any]) -> Job:
    """A job as plain data."""
    started, ended = answer.get("start_time"), answer.get("end_time")
    until = ended or (time.time() * 1000 if started else None)
    return {
        "id": answer["submission_id"],
        "stage": (answer.get("metadata") or {}).get("genflow", ""),
        "status": answer["status"],
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started / 1000)) if started else "",
        "seconds": round((until - started) / 1000, 1) if started and until else None,
        "message": (answer.get("message") or "").strip().partition("\n")[0],
        "exit_code": answer.get("driver_exit_code"),
    }
