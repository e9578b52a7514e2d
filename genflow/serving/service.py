"""What runs in a replica: a request in, a reply out. Every refusal is a reply, too: nothing is raised across Ray."""

import asyncio
import base64
import functools
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np

from genflow.data import preview
from genflow.errors import UsageError
from genflow.sampling.engine import SampleBatch, labels_for
from genflow.serving import decode_inputs, encode_outputs
from genflow.serving.batcher import Batcher, Job
from genflow.serving.engine_process import Batch, EngineProcess, Frame
from genflow.serving.model_list import ServedModel, signature
from genflow.serving.models import Model, model_of
from genflow.serving.responses import Reply, RequestError, json_reply
from genflow.serving.schemas import (
    MOST_EVALUATIONS,
    Asked,
    DecodeRequest,
    EncodeRequest,
    SampleRequest,
    Task,
    WalkRequest,
)
from genflow.specs import DataSpec

HANGS_S = 60.0  # without one network evaluation: the thread hangs


class Service:
    """The models of a replica, and the queue before them.

    Args:
        entries: the models, the first is the default.
        most_bytes: of engines in memory.
        deadline_s: a request takes no longer.
        rows: samples of a batch.
        most_jobs: requests that may wait.
        lost: called when the process that draws has died; it need not come back.
    """

    def __init__(
        self, entries: Sequence[ServedModel], *, most_bytes: int = 2**31, deadline_s: float = 60.0, rows: int = 64,
        most_jobs: int = 128, lost: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.models = {entry.name: Model(entry) for entry in entries}
        self.version = signature(entries)
        self.most_bytes, self.deadline_s = most_bytes, deadline_s
        self.worker = EngineProcess(most_bytes, lost)
        self.batcher = Batcher(self._draw, rows=rows, most_jobs=most_jobs)

    # --- What may be asked

    async def answer(self, task: Task, name: str, asked: Asked) -> Reply:
        """Samples, a walk, the codes of pictures, or the pictures of codes."""
        try:
            model = model_of(self.models, name)
            job, options = await self._job(model, task, asked)
            served = await self.batcher.run(job)
            start = time.monotonic()
            body = await asyncio.to_thread(encode_outputs.body, model, asked, options, served)
            return encode_outputs.reply(model, asked, options, served, body, time.monotonic() - start)
        except RequestError as refused:
            return refused.reply()

    async def stream(self, name: str, asked: SampleRequest) -> AsyncIterator[bytes]:
        """Server-sent events: `step` with what the samples look like now, then `done` with the samples, or `error`."""
        frames: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        task: asyncio.Task[Reply] | None = None
        try:
            model = model_of(self.models, name)
            asked = asked.model_copy(update={"format": "json"})
            if asked.n > self.batcher.rows:
                raise RequestError(422, f"at most {self.batcher.rows} samples can be watched", "n")
            job, options = await self._job(model, "samples", asked)

            def put(frame: dict[str, Any]) -> None:
                loop.call_soon_threadsafe(frames.put_nowait, frame)

            job.watch = _Watch(model.facts, put)
            task = loop.create_task(self._finish(model, asked, job, options, frames))
            while (frame := await frames.get()) is not None:
                yield _event("step", frame)
            reply = await task
            yield _event("done", json.loads(reply.body))
        except RequestError as refused:
            yield _event("error", json.loads(refused.reply().body))
        finally:
            if task:
                task.cancel()

    async def cards(self) -> list[dict[str, Any]]:
        """Every model's card."""
        loaded = self.loaded()
        return [{**model.card(), "loaded": name in loaded} for name, model in self.models.items()]

    async def health(self) -> dict[str, Any]:
        """What it has to do; raises if nothing is drawn any more."""
        self.check()
        return {
            "version": self.version, "models": list(self.models), "loaded": self.loaded(),
            "waiting": self.batcher.waiting, "backlog_s": round(self.batcher.backlog(), 2),
        }  # fmt: skip

    def loaded(self) -> list[str]:
        """The models in memory, the one used last at the end."""
        at = {path: place for place, path in enumerate(self.worker.loaded)}
        held = [model for model in self.models.values() if model.entry.path in at]
        return [model.name for model in sorted(held, key=lambda model: at[model.entry.path])]

    def check(self) -> None:
        """Raise if what draws has given no sign of life for too long.

        Raises:
            RuntimeError: so that the replica is replaced.
        """
        self.worker.check()
        silent = time.monotonic() - self.batcher.beat
        if self.batcher.busy and silent > HANGS_S:
            raise RuntimeError(f"the network that draws has been silent for {silent:.0f} s")

    async def change(self, entries: Sequence[ServedModel]) -> None:
        """Serve other models from now on: what cannot be loaded is refused, and the old ones stay."""
        if signature(entries) == self.version:
            return
        new = {entry.name: Model(entry) for entry in entries}
        held = 0
        for model in new.values():
            held += model.bytes
            if held <= self.most_bytes or held == model.bytes:
                await self.batcher.call(functools.partial(self.worker.load, model.entry))
        self.models, self.version = new, signature(entries)

    async def warm(self) -> None:
        """Load the first model and draw from it."""
        model = next(iter(self.models.values()))
        job, _ = await self._job(model, "samples", SampleRequest.model_validate({}))
        await self.batcher.run(job)

    # --- How

    async def _job(self, model: Model, task: Task, asked: Asked) -> tuple[Job, dict[str, Any]]:
        facts = model.facts
        given: list[Any] | None = None
        seeds: Sequence[int]
        if isinstance(asked, EncodeRequest | DecodeRequest):
            options: dict[str, Any] = {}
            records = await asyncio.to_thread(decode_inputs.given, model, asked)
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
            raise RequestError(422, message, "n" if n > options["steps"] else "steps")
        if asked.layout == "single" and n != 1:
            raise RequestError(422, "layout=single is for one sample", "layout", "n=1, or layout=grid")
        if facts.is_points and asked.layout == "single":
            raise RequestError(422, "points of the plane are no pictures", "layout", "layout=grid, or format=npy")
        word = "none" if asked.label is None else str(asked.label)
        if word == "all" and not isinstance(asked, SampleRequest):
            raise RequestError(422, "this stays within one class", "label", "name one, or leave the label out")
        try:
            labels = labels_for(word, n, facts) or [facts.classes] * n
        except UsageError as error:
            raise RequestError(422, error.message, "label", error.hint) from error
        key = (model.entry, task, json.dumps(options, sort_keys=True))
        return Job(key, seeds, labels, given, time.monotonic() + self.deadline_s), options

    def _draw(
        self, job: Job, seeds: list[int], labels: list[int], given: list[Any], alive: Callable[[], None]
    ) -> SampleBatch:
        entry, task, options = job.key  # the model of when it was asked: models may change meanwhile
        batch = Batch(entry, task, json.loads(options), seeds, labels, given, watched=job.watch is not None)
        drawn: SampleBatch = self.worker.draw(batch, alive, job.watch)
        return drawn

    async def _finish(
        self, model: Model, asked: Asked, job: Job, options: dict[str, Any], frames: "asyncio.Queue[Any]"
    ) -> Reply:
        try:
            served = await self.batcher.run(job)
            body = await asyncio.to_thread(encode_outputs.body, model, asked, options, served)
            return encode_outputs.reply(model, asked, options, served, body, 0.0)
        finally:
            frames.put_nowait(None)

    def close(self) -> None:
        """End what draws."""
        self.batcher.close()
        self.worker.close()


class _Watch:
    """Sends what the samples look like on the way. Called in the thread that waits for the drawing."""

    def __init__(self, facts: DataSpec, put: Callable[[dict[str, Any]], None]) -> None:
        self._facts, self._put = facts, put

    def __call__(self, told: Frame) -> None:
        evaluation, noisy, guess = told
        frame: dict[str, Any] = {"evaluation": evaluation}
        for name, records in (("noisy", noisy), ("guess", guess)):
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
