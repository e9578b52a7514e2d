"""Requests that fit together are drawn together.

One thread has batch after batch drawn, while the event loop takes requests in. Whatever waits with the same key when
the thread becomes free goes into its next batch, so nobody waits for company, and under load batches are full. The
number of waiting requests is bounded, and so is the time that they wait: a request whose turn cannot come before its
deadline is refused at once, one whose client goes away leaves the queue, and a batch that nobody waits for any more is
broken off at its next network evaluation.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genflow.sampling.engine import ROWS as FILLED
from genflow.sampling.engine import SampleBatch
from genflow.serving.responses import RequestError

ROWS = 64  # of a batch


class Abandoned(Exception):  # noqa: N818
    """Nobody waits for this batch any more."""


@dataclass(eq=False, repr=False)
class Job:
    """A request in the queue.

    Args:
        key: what requests must share to be drawn together: the model, what is asked of it, and its options.
        seeds: (N,) one a sample.
        labels: (N,).
        given: (N,) what each is made of besides: where a walk leads, a picture, a code; None for plain samples.
        deadline: on the monotonic clock.
        watch: told what its rows look like on the way, in the drawing thread; such a job is drawn alone.
    """

    key: tuple[Any, ...]
    seeds: Sequence[int]
    labels: Sequence[int]
    given: Sequence[Any] | None
    deadline: float
    watch: Callable[[Any], None] | None = None
    done: "asyncio.Future[Served]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    taken: int = 0
    parts: list[SampleBatch] = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    rows: int = 0  # of the largest batch it was in
    seconds: float = 0.0

    @property
    def left(self) -> int:
        """Samples that are still to be drawn."""
        return len(self.seeds) - self.taken

    def over(self, now: float) -> bool:
        """Whether nobody waits for it."""
        return self.done.done() or now > self.deadline


@dataclass(frozen=True)
class Served:
    """A job's samples, and where its time went.

    Args:
        images: as the engine draws them, or codes.
        labels: (N,).
        nfe: evaluations of each sample.
        waited: seconds in the queue.
        drawing: seconds of the batches that it was in.
        rows: of the largest of them.
    """

    images: np.ndarray
    labels: np.ndarray
    nfe: int
    waited: float
    drawing: float
    rows: int


Piece = tuple[Job, int, int]
Draw = Callable[[Job, list[int], list[int], list[Any], Callable[[], None]], SampleBatch]


class Batcher:
    """The queue and the thread.

    Args:
        draw: draws samples for a job's key, its seeds, labels and what else is given; called in the thread. It calls
            its last argument at every network evaluation, and ends when that raises.
        rows: samples of a batch at most.
        most_jobs: requests that may wait.
        patience_s: how long the queue may be when another request is taken into it, or as long as a full batch takes.
    """

    def __init__(
        self, draw: Draw, *, rows: int = ROWS, most_jobs: int = 128, patience_s: float = 1.0
    ) -> None:
        self._draw, self.rows, self.most_jobs = draw, rows, most_jobs
        self.patience_s = patience_s
        self._queue: deque[Job] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draw")
        self._drawn_at = 0.0  # when the batch that is being drawn will be, by what others took
        self._cut: set[Job] = set()  # jobs of which a part is being drawn, and a part is left
        self._given: set[asyncio.Task[None] | None] = set()  # batches that the thread draws, or will draw next
        self._pace: dict[Hashable, float] = {}  # seconds a sample
        self._fullest: dict[Hashable, int] = {}  # samples of the fullest batch
        self.beat = time.monotonic()  # when the thread last gave a sign of life

    @property
    def busy(self) -> bool:
        """Whether something is being drawn."""
        return bool(self._given)

    def backlog(self) -> float:
        """Seconds until the queue is drawn, by what batches took before."""
        running = max(0.0, self._drawn_at - time.monotonic()) if self.busy else 0.0
        return running + sum(job.left * self._pace.get(job.key, 0.0) for job in (*self._queue, *self._cut))

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    async def run(self, job: Job) -> Served:
        """A job's samples.

        Raises:
            Refused: the queue is full, or its turn did not, or cannot, come before the deadline.
        """
        self._admit(job)
        self._queue.append(job)
        self._give()
        timer = asyncio.get_running_loop().call_later(max(0.0, job.deadline - time.monotonic()), self._expire, job)
        try:
            return await job.done
        finally:
            timer.cancel()
            job.done.cancel()  # if it was broken off from outside; no change otherwise
            if job in self._queue:  # `remove` of a job that is not there writes out its pictures, for its error
                self._queue.remove(job)

    async def call(self, function: Callable[[], Any]) -> Any:
        """Something else that belongs into the drawing thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _admit(self, job: Job) -> None:
        backlog, pace = self.backlog(), self._pace.get(job.key, 0.0)
        own, patience = len(job.seeds) * pace, max(self.patience_s, self.rows * pace)
        soon = max(1, math.ceil(backlog))
        if len(self._queue) >= self.most_jobs or (self._queue and backlog > patience):
            message = f"{len(self._queue)} requests wait already, for about {backlog:.0f} s"
            raise RequestError(503, message, hint="try again", retry_after=soon)
        if backlog + own > job.deadline - time.monotonic():
            if backlog < own:
                message = f"this would take about {own:.0f} s, longer than a request may"
                raise RequestError(422, message, "n", "ask for fewer samples, or fewer steps")
            raise RequestError(503, f"the queue is {backlog:.0f} s long", hint="try again", retry_after=soon)

    def _expire(self, job: Job) -> None:
        if not job.done.done():
            soon = max(1, math.ceil(self.backlog()))
            late = RequestError(503, "not drawn before the deadline", hint="try again", retry_after=soon)
            job.done.set_exception(late)

    def _give(self) -> None:
        """Give the thread the next batch, and a second one as soon as it can be full: then it waits for nobody."""
        while self._queue and (not self._given or (len(self._given) == 1 and self._is_full())):
            if pieces := self._take():
                now = time.monotonic()
                if not self._given:
                    self.beat = self._drawn_at = now
                self._drawn_at += sum((b - a) * self._pace.get(job.key, 0.0) for job, a, b in pieces)
                self._given.add(asyncio.get_running_loop().create_task(self._have_drawn(pieces)))

    def _is_full(self) -> bool:
        """Whether those in the queue that fit to the first would fill a batch."""
        now, first = time.monotonic(), self._queue[0]
        fitting = (job.left for job in self._queue if job.key == first.key and job.watch is None and not job.over(now))
        return sum(fitting) >= self.rows

    async def _have_drawn(self, pieces: list[Piece]) -> None:
        try:
            drawn, start = await asyncio.get_running_loop().run_in_executor(self._thread, self._draw_pieces, pieces)
            self._deliver(pieces, drawn, start)
        except Abandoned:
            pass
        except Exception as error:
            for job, _, _ in pieces:
                if not job.done.done():
                    job.done.set_exception(error)
        finally:
            self._given.discard(asyncio.current_task())
            for job in {job for job, _, _ in pieces if job in self._cut}:  # behind whoever came meanwhile
                self._cut.discard(job)
                self._queue.append(job)
            self._give()

    def _take(self) -> list[Piece]:
        """The next batch: the first in the queue, and whoever has its key. What is left of a job waits for it."""
        now = time.monotonic()
        while self._queue and self._queue[0].over(now):
            self._queue.popleft()
        pieces: list[Piece] = []
        free, rest = self.rows, deque[Job]()
        for job in self._queue:
            alone = job.watch is not None or (bool(pieces) and pieces[0][0].watch is not None)
            if not free or (pieces and (alone or job.key != pieces[0][0].key)) or job.over(now):
                rest.append(job)
                continue
            count = min(free, job.left)
            pieces.append((job, job.taken, job.taken + count))
            job.taken, free = job.taken + count, free - count
            if job.left:
                self._cut.add(job)
        self._queue = rest
        return pieces

    def _draw_pieces(self, pieces: list[Piece]) -> tuple[SampleBatch, float]:
        """Draw a batch, and say when that began; in the thread."""
        jobs = [job for job, _, _ in pieces]
        seeds = [seed for job, a, b in pieces for seed in job.seeds[a:b]]
        labels = [label for job, a, b in pieces for label in job.labels[a:b]]
        given = [each for job, a, b in pieces for each in (job.given or ())[a:b]]

        def alive() -> None:
            self.beat = now = time.monotonic()
            if all(job.over(now) for job in jobs):
                raise Abandoned

        alive()
        start = time.monotonic()
        return self._draw(jobs[0], seeds, labels, given, alive), start

    def _deliver(self, pieces: list[Piece], drawn: SampleBatch, start: float) -> None:
        """Give every job its rows, and its samples when they are complete."""
        took, total = time.monotonic() - start, len(drawn.images)
        key = pieces[0][0].key
        pace = drawn.seconds / (math.ceil(total / FILLED) * FILLED)  # without the time that loading the model took
        known, fullest = self._pace.get(key, pace), self._fullest.get(key, 0)
        # fuller batches take less a sample: what a queue takes is known from the fullest, and from others at the most
        self._pace[key] = 0.7 * known + 0.3 * pace if total == fullest else min(known, pace)
        self._fullest[key] = max(fullest, total)
        while len(self._pace) > 1000:
            oldest = next(iter(self._pace))
            del self._pace[oldest], self._fullest[oldest]
        row = 0
        for job, a, b in pieces:
            images, labels = drawn.images[row : row + b - a], drawn.labels[row : row + b - a]
            row += b - a
            job.parts.append(SampleBatch(images, labels, drawn.nfe, drawn.seconds))
            job.begun, job.seconds, job.rows = job.begun or start, job.seconds + took, max(job.rows, total)
            if not job.left and not job.done.done():
                parts = job.parts
                served = Served(
                    np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]),
                    drawn.nfe, job.begun - job.arrived, job.seconds, job.rows,
                )  # fmt: skip
                job.done.set_result(served)

    def close(self) -> None:
        """End the thread."""
        for task in self._given:
            if task:
                task.cancel()
        self._queue.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)
