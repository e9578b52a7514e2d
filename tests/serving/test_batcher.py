"""The batcher: batching by key, limits of the queue, deadlines, cancelled requests."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from genflow.sampling.engine import SampleBatch
from genflow.serving.batcher import Batcher, QueuedRequest
from genflow.serving.responses import RequestError


class FakeDraw:
    """Returns each seed as its sample, after the given time and number of evaluations."""

    def __init__(self, seconds: float = 0.0, evaluations: int = 1) -> None:
        self.seconds, self.evaluations = seconds, evaluations
        self.batches: list[list[int]] = []
        self.cancelled = self.begun = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(
        self, request: QueuedRequest, seeds: list[int], labels: list[int], inputs: Any, on_evaluation: Any
    ) -> SampleBatch:
        self.begun += 1
        self.gate.wait(60)
        self.batches.append(list(seeds))
        start = time.perf_counter()
        for _ in range(self.evaluations):
            time.sleep(self.seconds / self.evaluations)
            try:
                on_evaluation()
            except Exception:
                self.cancelled += 1
                raise
        took = max(time.perf_counter() - start, 1e-9)
        return SampleBatch(np.asarray(seeds), np.asarray(labels), self.evaluations, took)


def request(seeds: Sequence[int], key: str = "k", seconds: float = 60.0, **more: Any) -> QueuedRequest:
    return QueuedRequest((key,), seeds, [0] * len(seeds), None, time.monotonic() + seconds, **more)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for the progress of another thread or task."""
    async with asyncio.timeout(400):
        while not condition():
            await asyncio.sleep(0.005)


async def together(batcher: Batcher, draw: FakeDraw, requests: list[QueuedRequest]) -> list[Any]:
    """Run requests that are all queued while a first one blocks the thread."""
    draw.gate.clear()
    first = asyncio.create_task(batcher.run(request([-1], "first")))
    await until(lambda: draw.begun)
    tasks = [asyncio.create_task(batcher.run(each)) for each in requests]
    await asyncio.sleep(0.05)
    draw.gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_equal_keys_share_a_batch() -> None:
    """Requests with equal keys share a batch, even with others between them, and each gets its own samples."""

    async def main() -> None:
        draw = FakeDraw()
        batcher = Batcher(draw, rows=8)
        requests = [request([1, 2]), request([10], "other"), request([3]), request([4, 5, 6])]
        results = await together(batcher, draw, requests)
        assert draw.batches == [[-1], [1, 2, 3, 4, 5, 6], [10]]
        assert [each.images.tolist() for each in results] == [[1, 2], [10], [3], [4, 5, 6]]
        assert results[0].batch_rows == 6
        batcher.close()

    asyncio.run(main())


def test_a_large_request_is_drawn_in_parts() -> None:
    """A large request is drawn one batch at a time, with other requests in between."""

    async def main() -> None:
        draw = FakeDraw()
        batcher = Batcher(draw, rows=4)
        results = await together(batcher, draw, [request(range(10), "large"), request([99], "small")])
        assert draw.batches == [[-1], [0, 1, 2, 3], [99], [4, 5, 6, 7], [8, 9]]
        assert results[0].images.tolist() == list(range(10))
        batcher.close()

    asyncio.run(main())


def test_a_full_queue_rejects_requests() -> None:
    """A full queue rejects further requests with 503 and a time to retry."""

    async def main() -> None:
        draw = FakeDraw()
        batcher = Batcher(draw, max_queued=3)
        results = await together(batcher, draw, [request([i], f"k{i}") for i in range(5)])
        assert [isinstance(each, RequestError) for each in results] == [False, False, False, True, True]
        assert results[-1].status == 503
        assert results[-1].retry_after >= 1
        batcher.close()

    asyncio.run(main())


def test_a_deadline_is_kept() -> None:
    """A request that is not drawn before its deadline gets 503, and is not drawn later."""

    async def main() -> None:
        draw = FakeDraw()
        batcher = Batcher(draw)
        draw.gate.clear()
        busy = asyncio.create_task(batcher.run(request([-1], "first")))
        await until(lambda: draw.begun)
        with pytest.raises(RequestError, match="not drawn before the deadline") as refused:
            await batcher.run(request([1], seconds=0.1))
        assert not busy.done()
        assert refused.value.status == 503
        draw.gate.set()
        await busy
        await asyncio.sleep(0.05)
        assert draw.batches == [[-1]]
        batcher.close()

    asyncio.run(main())


def test_a_request_that_takes_too_long_is_invalid() -> None:
    """A request gets 422 if it alone would take longer than its deadline allows, by the measured speed."""

    async def main() -> None:
        batcher = Batcher(FakeDraw(seconds=0.16))
        await batcher.run(request([0]))
        with pytest.raises(RequestError, match="longer than the limit for a request") as refused:
            await batcher.run(request(range(1000), seconds=2.0))
        assert (refused.value.status, refused.value.field) == (422, "n")
        batcher.close()

    asyncio.run(main())


def test_a_disconnected_client_frees_its_place() -> None:
    """A cancelled request leaves the queue, and a batch without other clients stops at its next evaluation."""

    async def main() -> None:
        draw = FakeDraw(seconds=2.0, evaluations=100)
        batcher = Batcher(draw)
        drawn = asyncio.create_task(batcher.run(request([1])))
        await until(lambda: draw.begun)
        waiting = asyncio.create_task(batcher.run(request([2], "other")))
        await until(lambda: batcher.waiting == 1)
        waiting.cancel()
        drawn.cancel()
        await asyncio.gather(drawn, waiting, return_exceptions=True)
        assert batcher.waiting == 0
        draw.seconds = 0.0
        await batcher.run(request([3]))
        assert draw.cancelled == 1
        assert draw.batches == [[1], [3]]
        batcher.close()

    asyncio.run(main())


def test_an_error_reaches_only_its_own_batch() -> None:
    """An error fails the requests of its batch, and the thread draws the next batch."""

    async def main() -> None:
        draw = FakeDraw()

        def fails(first: QueuedRequest, *rest: Any) -> SampleBatch:
            if first.key == ("bad",):
                raise ValueError("broken")
            return draw(first, *rest)

        batcher = Batcher(fails)
        bad, good = await asyncio.gather(
            batcher.run(request([1], "bad")), batcher.run(request([2], "good")), return_exceptions=True
        )
        assert isinstance(bad, ValueError)
        assert good.images.tolist() == [2]  # type: ignore[union-attr]
        batcher.close()

    asyncio.run(main())


def test_a_small_batch_does_not_raise_the_estimate() -> None:
    """The time per sample is estimated from the largest batches, because a queue is drawn in full batches."""

    async def learned_times() -> list[float]:
        batcher, found = Batcher(lambda *_: pytest.fail("nothing is drawn"), rows=64), []
        for rows, seconds in ((16, 0.8), (64, 1.6), (16, 0.8), (64, 3.2)):
            queued = QueuedRequest(("m",), range(rows), [0] * rows, None, time.monotonic() + 60)
            drawn = SampleBatch(np.zeros((rows, 1)), np.zeros(rows, int), 1, seconds)
            batcher._deliver([(queued, 0, rows)], drawn, time.monotonic())
            found.append(round(batcher._seconds_per_sample[("m",)], 4))
        batcher.close()
        return found

    assert asyncio.run(learned_times()) == [0.05, 0.025, 0.025, 0.0325]
