"""What runs in a replica: a request in, a reply out. Every refusal is a reply, too: nothing is raised across Ray."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from genflow.data import preview
from genflow.data.shards import from_x
from genflow.engine import Drawn, Engine, labels_for
from genflow.errors import UsageError
from genflow.facts import Facts
from genflow.families.base import Watcher
from genflow.serving import reading, writing
from genflow.serving.batcher import Batcher, Job
from genflow.serving.entries import Entry, signature
from genflow.serving.replies import Refused, Reply, json_reply
from genflow.serving.requests import (
    FRAMES,
    MOST_EVALUATIONS,
    DecodeRequest,
    EncodeRequest,
    SampleRequest,
    Task,
    WalkRequest,
)
from genflow.serving.shelf import Model, Shelf
from genflow.serving.writing import Asked

HANGS_S = 60.0  # without one network evaluation: the thread hangs
REQUESTS: dict[Task, Any] = {
    "samples": SampleRequest, "walks": WalkRequest, "encode": EncodeRequest, "decode": DecodeRequest,
}  # fmt: skip


class Service:
    """The models of a replica, and the queue before them.

    Args:
        entries: the models, the first is the default.
        most_bytes: of engines in memory.
        deadline_s: a request takes no longer.
        rows: samples of a batch.
        most_jobs: requests that may wait.
    """

    def __init__(
        self, entries: Sequence[Entry], *, most_bytes: int = 2**31, deadline_s: float = 60.0, rows: int = 64,
        most_jobs: int = 128,
    ) -> None:  # fmt: skip
        self.shelf = Shelf(entries, most_bytes)
        self.version = signature(entries)
        self.deadline_s = deadline_s
        self.batcher = Batcher(self._draw, rows=rows, most_jobs=most_jobs)

    # --- What may be asked

    async def answer(self, task: Task, name: str, request: dict[str, Any]) -> Reply:
        """Samples, a walk, the codes of pictures, or the pictures of codes."""
        try:
            model = self.shelf.model(name or next(iter(self.shelf.models)))
            asked: Asked = REQUESTS[task].model_validate(request)
            job, options = await self._job(model, asked)
            served = await self.batcher.run(job)
            start = time.monotonic()
            body = await asyncio.to_thread(writing.body, model, asked, options, served)
            return writing.reply(model, asked, options, served, body, time.monotonic() - start)
        except Refused as refused:
            return refused.reply()

    async def stream(self, name: str, request: dict[str, Any]) -> AsyncIterator[bytes]:
        """Server-sent events: `step` with what the samples look like now, then `done` with the samples, or `error`."""
        frames: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        task: asyncio.Task[Reply] | None = None
        try:
            model = self.shelf.model(name or next(iter(self.shelf.models)))
            asked = SampleRequest.model_validate({**request, "format": "json"})
            if asked.n > self.batcher.rows:
                raise Refused(422, f"at most {self.batcher.rows} samples can be watched", "n")
            job, options = await self._job(model, asked)

            def put(frame: dict[str, Any]) -> None:
                loop.call_soon_threadsafe(frames.put_nowait, frame)

            job.watch = _Watch(model.facts, options.get("steps", 1), put)
            task = loop.create_task(self._finish(model, asked, job, options, frames))
            while (frame := await frames.get()) is not None:
                yield _event("step", frame)
            reply = await task
            yield _event("done", json.loads(reply.body))
        except Refused as refused:
            yield _event("error", json.loads(refused.reply().body))
        finally:
            if task:
                task.cancel()

    async def cards(self) -> list[dict[str, Any]]:
        """Every model's card."""
        loaded = self.shelf.loaded()
        return [{**model.card(), "loaded": name in loaded} for name, model in self.shelf.models.items()]

    async def health(self) -> dict[str, Any]:
        """What it has to do; raises if the drawing thread hangs."""
        self.check()
        return {
            "version": self.version, "models": list(self.shelf.models), "loaded": self.shelf.loaded(),
            "waiting": self.batcher.waiting, "backlog_s": round(self.batcher.backlog(), 2),
        }  # fmt: skip

    def check(self) -> None:
        """Raise if the drawing thread has given no sign of life for too long.

        Raises:
            RuntimeError: so that the replica is replaced.
        """
        silent = time.monotonic() - self.batcher.beat
        if self.batcher.busy and silent > HANGS_S:
            raise RuntimeError(f"the drawing thread has been silent for {silent:.0f} s")

    async def change(self, entries: Sequence[Entry]) -> None:
        """Serve other models from now on: what cannot be loaded is refused, and the old ones stay."""
        if signature(entries) == self.version:
            return
        new = Shelf(entries, self.shelf.most_bytes)

        def load() -> None:
            new.adopt(self.shelf)
            for name in new.models:
                if new.held() + new.models[name].bytes <= new.most_bytes or not new.loaded():
                    new.engine(name)

        await self.batcher.call(load)
        self.shelf, self.version = new, signature(entries)

    async def warm(self) -> None:
        """Load the first model and draw from it."""
        model = next(iter(self.shelf.models.values()))
        job, _ = await self._job(model, SampleRequest.model_validate({}))
        await self.batcher.run(job)

    # --- How

    async def _job(self, model: Model, asked: Asked) -> tuple[Job, dict[str, Any]]:
        facts, task = model.facts, next(task for task, kind in REQUESTS.items() if isinstance(asked, kind))
        given: list[Any] | None = None
        seeds: Sequence[int]
        if isinstance(asked, EncodeRequest | DecodeRequest):
            options: dict[str, Any] = {}
            records = await asyncio.to_thread(reading.given, model, asked)
            given, seeds = records, range(asked.seed, asked.seed + len(records))
        elif isinstance(asked, WalkRequest):
            options = model.options(asked.options())
            seeds, given = [asked.seed] * asked.n, [(asked.to_seed, i / (asked.n - 1)) for i in range(asked.n)]
        else:
            options = model.options(asked.options())
            seeds = range(asked.seed, asked.seed + asked.n)
        n = len(seeds)
        if n * options.get("steps", 1) > MOST_EVALUATIONS:
            message = f"{n} samples of {options['steps']} steps are more than {MOST_EVALUATIONS:,} steps in all"
            raise Refused(422, message, "n" if n > options["steps"] else "steps")
        if asked.layout == "single" and n != 1:
            raise Refused(422, "layout=single is for one sample", "layout", "n=1, or layout=grid")
        if facts.is_points and asked.layout == "single":
            raise Refused(422, "points of the plane are no pictures", "layout", "layout=grid, or format=npy")
        word = "none" if asked.label is None else str(asked.label)
        if word == "all" and not isinstance(asked, SampleRequest):
            raise Refused(422, "this stays within one class", "label", "name one, or leave the label out")
        try:
            labels = labels_for(word, n, facts) or [facts.classes] * n
        except UsageError as error:
            raise Refused(422, error.message, "label", error.hint) from error
        key = (self.shelf, model.name, task, json.dumps(options, sort_keys=True))
        return Job(key, seeds, labels, given, time.monotonic() + self.deadline_s), options

    def _draw(self, job: Job, seeds: list[int], labels: list[int], given: list[Any], watch: Watcher) -> Drawn:
        shelf, name, task, options = job.key  # the shelf of when it was asked: models may change meanwhile
        engine: Engine = shelf.engine(name)
        if task == "encode":
            start = time.monotonic()
            codes = engine.encode(np.stack(given), labels, seeds, watch)
            return Drawn(codes, np.asarray(labels), 0, time.monotonic() - start)
        if task == "decode":
            return engine.decode(np.stack(given), labels, seeds, watch)
        toward = given if task == "walks" else None
        return engine.draw(seeds, labels, toward=toward, watch=watch, **json.loads(options))

    async def _finish(
        self, model: Model, asked: Asked, job: Job, options: dict[str, Any], frames: "asyncio.Queue[Any]"
    ) -> Reply:
        try:
            served = await self.batcher.run(job)
            body = await asyncio.to_thread(writing.body, model, asked, options, served)
            return writing.reply(model, asked, options, served, body, 0.0)
        finally:
            frames.put_nowait(None)

    def close(self) -> None:
        """End the drawing thread."""
        self.batcher.close()


class _Watch:
    """Sends what the samples look like on the way, `FRAMES` times at most. Called in the drawing thread."""

    def __init__(self, facts: Facts, steps: int, put: Any) -> None:
        self._facts, self._put = facts, put
        self._every = max(1, -(-2 * steps // FRAMES)) if steps > FRAMES // 2 else 1
        self._count = 0

    def __call__(self, x: Tensor, guess: Tensor) -> None:
        count, self._count = self._count, self._count + 1
        if count % self._every or count // self._every >= 2 * FRAMES:
            return
        frame: dict[str, Any] = {"evaluation": count + 1}
        for name, tensor in (("noisy", x), ("guess", guess)):
            records = from_x(tensor, self._facts)
            if self._facts.is_points:
                frame[name] = np.round(records.reshape(-1, 2), 4).tolist()
            else:
                frame[name] = [base64.b64encode(png).decode() for png in preview.pngs(records, self._facts)]
        self._put(frame)


def _event(name: str, document: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(document)}\n\n".encode()


def listing(cards: list[dict[str, Any]]) -> Reply:
    """`GET /v1/models`."""
    return json_reply({"object": "list", "data": cards})
