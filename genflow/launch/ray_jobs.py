"""Jobs on a Ray cluster: start one, follow what it says through lost connections, list and stop them.

The one file of `genflow/` that imports ray, inside a function: uploading a parcel and following a log are the
work of Ray's own client, which takes a second to import. Everything else is a request to the dashboard.
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

PROBE = "probe"  # the stage that asks every node before a job is sent: nobody's own job
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
POLL_S = 0.3  # between two looks at a log that is still empty; Ray's tail would begin after 3 s
SILENCE_S = 60.0  # after this much of it, look whether the tail is dead or the job has nothing to say
RECONNECT_S = 300.0  # how long to look for a cluster that was there before

Job = dict[str, Any]


@dataclass(frozen=True)
class Jobs:
    """The jobs of the cluster behind a dashboard."""

    dashboard: Dashboard

    def all(self) -> list[Job]:
        """Every job that was submitted, the newest first."""
        every = [answer for answer in self.dashboard.ask("/api/jobs/") if answer.get("submission_id")]
        jobs = [_job(answer) for answer in sorted(every, key=lambda answer: -(answer.get("start_time") or 0))]
        return [job for job in jobs if job["stage"] != PROBE]

    def get(self, id: str) -> Job:
        """One job.

        Raises:
            Missing: there is none of that id.
        """
        return _job(self.dashboard.ask(f"/api/jobs/{id}", missing=f"job {id}"))

    def find(self, reference: str) -> Job:
        """A job by its id, a prefix of it, or `latest`; of several attempts at one thing, the newest.

        Raises:
            UsageError: none is meant, or several.
        """
        every = self.all()
        if reference == "latest" and every:
            return every[0]
        close = [job for job in every if job["id"] == reference] or [
            job for job in every if reference and job["id"].startswith(reference)
        ]
        if len({job["id"].rpartition("-")[0] for job in close}) == 1:
            return close[0]
        known = ", ".join(job["id"] for job in (close or every)[:8]) or "none"
        how = "is ambiguous" if close else "does not exist"
        raise UsageError(f"job {reference!r} {how}; there are: {known}", "genflow jobs ls")

    def log(self, id: str) -> str:
        """All that a job has said."""
        return str(self.dashboard.ask(f"/api/jobs/{id}/logs", missing=f"job {id}")["logs"] or "")

    def stop(self, id: str) -> bool:
        """Ask a job to save and end; whether it was running."""
        return bool(self.dashboard.ask(f"/api/jobs/{id}/stop", "POST", missing=f"job {id}")["stopped"])

    def submit(self, id: str, entrypoint: str, parcel: Path, variables: Mapping[str, str], stage: str) -> None:
        """Upload a parcel and start a job in it.

        Raises:
            ClusterError: the cluster does not take it.
        """
        environment = {"working_dir": str(parcel), "env_vars": dict(variables)}
        try:
            self._client().submit_job(
                entrypoint=entrypoint, submission_id=id, runtime_env=environment, metadata={"genflow": stage}
            )
        except Exception as error:  # requests', Ray's, and RuntimeError with the server's traceback
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            raise ClusterError(
                f"the cluster does not take the job: {lines[-1] if lines else type(error).__name__}"
            ) from error

    def follow(self, id: str, say: Callable[[str], None]) -> Iterator[str]:
        """A job's log, line by line, until the job has ended; through lost connections.

        Args:
            id: the job's.
            say: is told when the connection is lost, and when it is back.

        Raises:
            ClusterError: the cluster stays away, or comes back without the job.
        """
        seen, rest, lost = 0, "", 0.0
        while True:
            try:
                ended = self.get(id)["status"] in ENDED  # asked first: then the log below is all there is
                for text in [self.log(id)[seen:]] if ended else self._chunks(id, seen):
                    if lost:
                        lost = 0.0
                        say("the cluster is back")
                    seen += len(text)
                    *whole, rest = (rest + text).split("\n")
                    yield from whole
                if ended:
                    break
            except NotFound as error:
                raise ClusterError(
                    f"the cluster no longer knows the job {id}: its head was started anew",
                    "run the same command again: it goes on",
                ) from error
            except Unreachable as error:
                if not lost:
                    lost = time.monotonic()
                    say(f"lost the cluster ({error.message}); looking for it")
                if time.monotonic() - lost > RECONNECT_S:
                    raise ClusterError(error.message, f"the job may go on: genflow jobs logs {id}") from error
                time.sleep(1)
        if rest:
            yield rest

    def _chunks(self, id: str, seen: int) -> Iterator[str]:
        """What a job says after the first `seen` characters, as long as the connection holds."""
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
                    return  # the job speaks, and nothing arrives
                continue
            if chunk is None:
                return
            if isinstance(chunk, Exception):
                raise Unreachable(f"the log of {id} broke off: {type(chunk).__name__}") from chunk
            fresh = chunk[max(0, seen - arrived) :]  # a tail begins at the beginning
            arrived += len(chunk)
            if fresh:
                seen = arrived
                yield fresh

    def _tail(self, id: str) -> "queue.Queue[str | Exception | None]":
        """A thread that listens to a job: pieces of its log, then None or what went wrong."""
        chunks: queue.Queue[str | Exception | None] = queue.Queue()
        client = self._client()

        async def listen() -> None:
            async for text in client.tail_job_logs(id):
                chunks.put(text)

        def run() -> None:
            try:
                asyncio.run(listen())
                chunks.put(None)
            except Exception as error:
                chunks.put(error)

        threading.Thread(target=run, name="tail", daemon=True).start()
        return chunks

    def _client(self) -> Any:
        """Ray's own client. It obeys RAY_API_SERVER_ADDRESS before its argument."""
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
