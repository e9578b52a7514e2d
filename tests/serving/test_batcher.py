"""The queue: who fits together is drawn together, nobody waits in vain, and there is an end to it."""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from genflow.sampling.engine import SampleBatch
from genflow.serving.batcher import Batcher, Job
from genflow.serving.responses import RequestError


class Slow:
    """Draws each seed as itself, in the time it is told to, looking up between evaluations."""

    def __init__(self, seconds: float = 0.0, evaluations: int = 1) -> None:
        self.seconds, self.evaluations = seconds, evaluations
        self.batches: list[list[int]] = []
        self.broken_off = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, job: Job, seeds: list[int], labels: list[int], toward: Any, watch: Any) -> SampleBatch:
        self.gate.wait(10)
        self.batches.append(list(seeds))
        start = time.perf_counter()
        for _ in range(self.evaluations):
            time.sleep(self.seconds / self.evaluations)
            try:
                watch()
            except Exception:
                self.broken_off += 1
                raise
        took = max(time.perf_counter() - start, 1e-9)
        return SampleBatch(np.asarray(seeds), np.asarray(labels), self.evaluations, took)


def job(seeds: Sequence[int], key: str = "k", seconds: float = 10.0, **more: Any) -> Job:
    return Job((key,), seeds, [0] * len(seeds), None, time.monotonic() + seconds, **more)


async def together(batcher: Batcher, draw: Slow, jobs: list[Job]) -> list[Any]:
    """Run jobs that all wait before the first batch is drawn; the first alone holds the thread meanwhile."""
    draw.gate.clear()
    first = asyncio.create_task(batcher.run(job([-1], "first")))
    await asyncio.sleep(0.05)
    tasks = [asyncio.create_task(batcher.run(each)) for each in jobs]
    await asyncio.sleep(0.05)
    draw.gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_who_fits_is_drawn_together() -> None:
    """Requests of one key in one batch, whatever stands between them; each gets its own samples."""

    async def main() -> None:
        draw = Slow()
        batcher = Batcher(draw, rows=8)
        jobs = [job([1, 2]), job([10], "other"), job([3]), job([4, 5, 6])]
        served = await together(batcher, draw, jobs)
        assert draw.batches == [[-1], [1, 2, 3, 4, 5, 6], [10]]
        assert [each.images.tolist() for each in served] == [[1, 2], [10], [3], [4, 5, 6]]
        assert served[0].rows == 6
        batcher.close()

    asyncio.run(main())


def test_a_large_request_holds_up_nobody_for_long() -> None:
    """It is drawn a batch at a time, and the others come between."""

    async def main() -> None:
        draw = Slow()
        batcher = Batcher(draw, rows=4)
        served = await together(batcher, draw, [job(range(10), "large"), job([99], "small")])
        assert draw.batches == [[-1], [0, 1, 2, 3], [99], [4, 5, 6, 7], [8, 9]]
        assert served[0].images.tolist() == list(range(10))
        batcher.close()

    asyncio.run(main())


def test_a_full_queue_says_so_at_once() -> None:
    """503 with a time to come back."""

    async def main() -> None:
        draw = Slow()
        batcher = Batcher(draw, most_jobs=3)
        served = await together(batcher, draw, [job([i], f"k{i}") for i in range(5)])
        assert [isinstance(each, RequestError) for each in served] == [False, False, False, True, True]
        assert served[-1].status == 503
        assert served[-1].retry_after >= 1
        batcher.close()

    asyncio.run(main())


def test_a_deadline_is_kept() -> None:
    """What is not drawn by then is refused, and is not drawn later."""

    async def main() -> None:
        draw = Slow()
        batcher = Batcher(draw)
        draw.gate.clear()
        busy = asyncio.create_task(batcher.run(job([-1], "first")))
        await asyncio.sleep(0.02)
        start = time.monotonic()
        with pytest.raises(RequestError, match="not drawn before the deadline") as refused:
            await batcher.run(job([1], seconds=0.1))
        assert time.monotonic() - start < 1
        assert refused.value.status == 503
        draw.gate.set()
        await busy
        await asyncio.sleep(0.05)
        assert draw.batches == [[-1]]
        batcher.close()

    asyncio.run(main())


def test_what_can_never_be_done_in_time_is_refused_as_such() -> None:
    """422 for a request whose own drawing takes longer than a request may, once the pace is known."""

    async def main() -> None:
        batcher = Batcher(Slow(seconds=0.16))
        await batcher.run(job([0]))
        with pytest.raises(RequestError, match="longer than a request may") as refused:
            await batcher.run(job(range(1000), seconds=2.0))
        assert (refused.value.status, refused.value.field) == (422, "n")
        batcher.close()

    asyncio.run(main())


def test_a_client_that_goes_away_frees_its_place() -> None:
    """In the queue, and in the thread at the next evaluation if nobody else waits for the batch."""

    async def main() -> None:
        draw = Slow(seconds=2.0, evaluations=100)
        batcher = Batcher(draw)
        drawn = asyncio.create_task(batcher.run(job([1])))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(batcher.run(job([2], "other")))
        await asyncio.sleep(0.05)
        assert batcher.waiting == 1
        waiting.cancel()
        drawn.cancel()
        await asyncio.gather(drawn, waiting, return_exceptions=True)
        assert batcher.waiting == 0
        start = time.monotonic()
        draw.seconds = 0.0
        await batcher.run(job([3]))
        assert time.monotonic() - start < 1
        assert draw.broken_off == 1
        assert draw.batches == [[1], [3]]
        batcher.close()

    asyncio.run(main())


def test_an_error_reaches_those_who_wait_and_no_others() -> None:
    """The thread goes on."""

    async def main() -> None:
        draw = Slow()

        def fails(first: Job, *rest: Any) -> SampleBatch:
            if first.key == ("bad",):
                raise ValueError("broken")
            return draw(first, *rest)

        batcher = Batcher(fails)
        bad, good = await asyncio.gather(
            batcher.run(job([1], "bad")), batcher.run(job([2], "good")), return_exceptions=True
        )
        assert isinstance(bad, ValueError)
        assert good.images.tolist() == [2]  # type: ignore[union-attr]
        batcher.close()

    asyncio.run(main())


def test_a_half_empty_batch_does_not_lengthen_the_queue() -> None:
    """A sample takes least in a full batch, and a queue is drawn in full ones."""
    async def reckoned() -> list[float]:
        batcher, found = Batcher(lambda *_: pytest.fail("nothing is drawn"), rows=64), []
        for rows, seconds in ((16, 0.8), (64, 1.6), (16, 0.8), (64, 3.2)):
            job = Job(("m",), range(rows), [0] * rows, None, time.monotonic() + 60)
            drawn = SampleBatch(np.zeros((rows, 1)), np.zeros(rows, int), 1, seconds)
            batcher._deliver([(job, 0, rows)], drawn, time.monotonic())
            found.append(round(batcher._pace[("m",)], 4))
        batcher.close()
        return found

    assert asyncio.run(reckoned()) == [0.05, 0.025, 0.025, 0.0325]
