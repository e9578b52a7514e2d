"""Dynamic batching: requests with equal settings are drawn in one batch.

One thread draws batch after batch, while the event loop accepts requests. When the thread is free, its next batch takes
all queued requests with the same key. So no request waits for a batch to fill, and under load the batches are full.

The length of the queue and the waiting time are bounded. A request that cannot be drawn before its deadline is rejected
at once. A request leaves the queue when its client disconnects. A batch without any waiting client is cancelled at its
next network evaluation.
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

from genflow.sampling.engine import SampleBatch
from genflow.serving.conditions import Condition
from genflow.serving.responses import RequestError

MAX_BATCH_ROWS = 64  # samples


class BatchCancelled(Exception):  # noqa: N818
    """No client waits for this batch any more."""


@dataclass(eq=False, repr=False)
class QueuedRequest:
    """A request in the queue.

    Args:
        key: requests with equal keys can share a batch: the model, the task, and its options.
        seeds: (N,) one for each sample.
        conditions: (N,) class indices, or captions: requests with different ones share a batch.
        inputs: (N,) further input of each sample: the end of a walk, an image, or a code; None for plain samples.
        deadline: on the monotonic clock.
        on_frame: called in the drawing thread with the intermediate samples; such a request gets a batch of its own.
    """

    key: tuple[Any, ...]
    seeds: Sequence[int]
    conditions: Sequence[Condition]
    inputs: Sequence[Any] | None
    deadline: float
    on_frame: Callable[[Any], None] | None = None
    result: "asyncio.Future[RequestResult]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    scheduled: int = 0
    parts: list[np.ndarray] = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    batch_rows: int = 0  # samples in the largest of its batches
    drawing_seconds: float = 0.0

    @property
    def remaining(self) -> int:
        """Samples that are in no batch yet."""
        return len(self.seeds) - self.scheduled

    def is_finished(self, now: float) -> bool:
        """Whether no client waits for it: it is answered or cancelled, or its deadline has passed."""
        return self.result.done() or now > self.deadline


@dataclass(frozen=True)
class RequestResult:
    """The samples of a request, with its timings.

    Args:
        images: (N, ...) as the engine returns them, or codes.
        nfe: network evaluations of each sample.
        queue_seconds: time in the queue.
        drawing_seconds: time to draw the batches that contain the request.
        batch_rows: samples in the largest of these batches.
    """

    images: np.ndarray
    nfe: int
    queue_seconds: float
    drawing_seconds: float
    batch_rows: int


RequestSlice = tuple[QueuedRequest, int, int]
DrawBatch = Callable[[QueuedRequest, list[int], list[Condition], list[Any], Callable[[], None]], SampleBatch]


class Batcher:
    """The queue, and the thread that draws.

    Args:
        draw: draws one batch, called in the thread with the first request, and the seeds, conditions and inputs
            of all rows. It calls its last argument at every network evaluation, and stops when that raises.
        rows: largest number of samples in a batch.
        max_queued: largest number of requests in the queue.
        max_backlog_s: while the queue needs more seconds than this, and more than one full batch takes, new requests
            are rejected.
    """

    def __init__(
        self, draw: DrawBatch, *, rows: int = MAX_BATCH_ROWS, max_queued: int = 128, max_backlog_s: float = 1.0
    ) -> None:
        self._draw, self.rows, self.max_queued = draw, rows, max_queued
        self.max_backlog_s = max_backlog_s
        self._queue: deque[QueuedRequest] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draw")
        self._expected_end = 0.0  # of the running batches, estimated from earlier ones
        self._partial: set[QueuedRequest] = set()  # partly in a running batch, partly in no batch yet
        self._running: set[asyncio.Task[None] | None] = set()  # the batch in the thread, and at most one that is ready
        self._seconds_per_sample: dict[Hashable, float] = {}  # by key
        self._largest_batch: dict[Hashable, int] = {}  # number of samples, by key
        self.last_progress = time.monotonic()  # when the thread last reported progress

    @property
    def busy(self) -> bool:
        """Whether a batch is being drawn."""
        return bool(self._running)

    def backlog(self) -> float:
        """Seconds until the queue is empty, estimated from earlier batches."""
        running = max(0.0, self._expected_end - time.monotonic()) if self.busy else 0.0
        return running + sum(self._estimate(request, request.remaining) for request in (*self._queue, *self._partial))

    def _estimate(self, request: QueuedRequest, samples: int) -> float:
        return samples * self._seconds_per_sample.get(request.key, 0.0)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    async def run(self, request: QueuedRequest) -> RequestResult:
        """Queue a request and return its samples.

        Raises:
            RequestError: the queue is full, or the request is not, or cannot be, drawn before its deadline.
        """
        self._admit(request)
        self._queue.append(request)
        self._start_batches()
        remaining_s = max(0.0, request.deadline - time.monotonic())
        timer = asyncio.get_running_loop().call_later(remaining_s, self._expire, request)
        try:
            return await request.result
        finally:
            timer.cancel()
            request.result.cancel()  # has an effect only if the caller cancelled `run`
            if request in self._queue:  # on a miss, `remove` would format all its images for the error message
                self._queue.remove(request)

    async def call_in_thread(self, function: Callable[[], Any]) -> Any:
        """Run another function in the drawing thread, and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _admit(self, request: QueuedRequest) -> None:
        backlog, own = self.backlog(), self._estimate(request, len(request.seeds))
        limit = max(self.max_backlog_s, self._estimate(request, self.rows))
        retry_after = max(1, math.ceil(backlog))
        if len(self._queue) >= self.max_queued or (self._queue and backlog > limit):
            message = f"{len(self._queue)} requests are waiting, for about {backlog:.0f} s"
            raise RequestError(503, message, hint="try again later", retry_after=retry_after)
        if backlog + own > request.deadline - time.monotonic():
            if backlog < own:
                message = f"this would take about {own:.0f} s, longer than the limit for a request"
                raise RequestError(422, message, "n", "request fewer samples, or fewer steps")
            raise RequestError(
                503, f"the queue needs about {backlog:.0f} s", hint="try again later", retry_after=retry_after
            )

    def _expire(self, request: QueuedRequest) -> None:
        if not request.result.done():
            retry_after = max(1, math.ceil(self.backlog()))
            error = RequestError(503, "not drawn before the deadline", hint="try again later", retry_after=retry_after)
            request.result.set_exception(error)

    def _start_batches(self) -> None:
        """Submit the next batch to the thread, and a second one as soon as it can be full, so that it need not wait."""
        while self._queue and (not self._running or (len(self._running) == 1 and self._can_fill_batch())):
            if slices := self._next_batch():
                now = time.monotonic()
                if not self._running:
                    self.last_progress = self._expected_end = now
                self._expected_end += sum(self._estimate(request, b - a) for request, a, b in slices)
                self._running.add(asyncio.get_running_loop().create_task(self._run_batch(slices)))

    def _can_fill_batch(self) -> bool:
        """Whether the first request and those with the same key would fill a batch."""
        now, first = time.monotonic(), self._queue[0]
        fitting = [request for request in self._queue if request.key == first.key and request.on_frame is None]
        return sum(request.remaining for request in fitting if not request.is_finished(now)) >= self.rows

    async def _run_batch(self, slices: list[RequestSlice]) -> None:
        try:
            drawn, start = await asyncio.get_running_loop().run_in_executor(self._thread, self._draw_batch, slices)
            self._deliver(slices, drawn, start)
        except BatchCancelled:
            pass
        except Exception as error:
            for request, _, _ in slices:
                if not request.result.done():
                    request.result.set_exception(error)
        finally:
            self._running.discard(asyncio.current_task())
            # partly drawn requests queue behind those that arrived in the meantime
            for request in {request for request, _, _ in slices if request in self._partial}:
                self._partial.discard(request)
                self._queue.append(request)
            self._start_batches()

    def _next_batch(self) -> list[RequestSlice]:
        """Take the next batch from the queue: the first request, and further ones with the same key.

        The rest of a request that does not fit is queued again after the batch.
        """
        now = time.monotonic()
        while self._queue and self._queue[0].is_finished(now):
            self._queue.popleft()
        slices: list[RequestSlice] = []
        free, rest = self.rows, deque[QueuedRequest]()
        for request in self._queue:
            alone = request.on_frame is not None or (bool(slices) and slices[0][0].on_frame is not None)
            if not free or (slices and (alone or request.key != slices[0][0].key)) or request.is_finished(now):
                rest.append(request)
                continue
            count = min(free, request.remaining)
            slices.append((request, request.scheduled, request.scheduled + count))
            request.scheduled, free = request.scheduled + count, free - count
            if request.remaining:
                self._partial.add(request)
        self._queue = rest
        return slices

    def _draw_batch(self, slices: list[RequestSlice]) -> tuple[SampleBatch, float]:
        """Draw a batch in the thread, and return it with its start time."""
        requests = [request for request, _, _ in slices]
        seeds = [seed for request, a, b in slices for seed in request.seeds[a:b]]
        conditions = [each for request, a, b in slices for each in request.conditions[a:b]]
        inputs = [each for request, a, b in slices for each in (request.inputs or ())[a:b]]

        def on_evaluation() -> None:
            self.last_progress = now = time.monotonic()
            if all(request.is_finished(now) for request in requests):
                raise BatchCancelled

        on_evaluation()
        start = time.monotonic()
        return self._draw(requests[0], seeds, conditions, inputs, on_evaluation), start

    def _deliver(self, slices: list[RequestSlice], drawn: SampleBatch, start: float) -> None:
        """Distribute the rows to their requests, and complete those that have all their samples."""
        took, total = time.monotonic() - start, len(drawn.images)
        key = slices[0][0].key
        # `drawn.seconds` excludes the time to load the model
        per_sample = drawn.seconds / max(1, total, drawn.rows)
        known, largest = self._seconds_per_sample.get(key, per_sample), self._largest_batch.get(key, 0)
        # A sample costs less in a fuller batch, and a queue is drawn in full batches. So the largest batches give the
        # estimate, and a smaller one can only lower it.
        self._seconds_per_sample[key] = 0.7 * known + 0.3 * per_sample if total == largest else min(known, per_sample)
        self._largest_batch[key] = max(largest, total)
        while len(self._seconds_per_sample) > 1000:
            oldest = next(iter(self._seconds_per_sample))
            del self._seconds_per_sample[oldest], self._largest_batch[oldest]
        row = 0
        for request, a, b in slices:
            request.parts.append(drawn.images[row : row + b - a])
            row += b - a
            request.started = request.started or start
            request.drawing_seconds += took
            request.batch_rows = max(request.batch_rows, total)
            if not request.remaining and not request.result.done():
                result = RequestResult(
                    np.concatenate(request.parts), drawn.nfe, request.started - request.arrived,
                    request.drawing_seconds, request.batch_rows,
                )  # fmt: skip
                request.result.set_result(result)

    def close(self) -> None:
        """Stop the thread."""
        for task in self._running:
            if task:
                task.cancel()
        self._queue.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)
