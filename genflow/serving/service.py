"""What runs in a replica: a request in, a reply out. Every refusal is a reply, too: nothing is raised across Ray."""

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from genflow.data import preview
from genflow.data.shards import from_x
from genflow.engine import Drawn, labels_for
from genflow.errors import UsageError
from genflow.facts import Facts
from genflow.families.base import Watcher
from genflow.serving.batcher import Batcher, Job, Served
from genflow.serving.entries import Entry, signature
from genflow.serving.replies import Refused, Reply, json_reply
from genflow.serving.requests import FRAMES, MOST_EVALUATIONS, SampleRequest, WalkRequest
from genflow.serving.shelf import Model, Shelf

MEDIA = {"png": "image/png", "webp": "image/webp", "json": "application/json", "npy": "application/x-npy"}
HANGS_S = 60.0  # without one network evaluation: the thread hangs
Asked = SampleRequest | WalkRequest


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

    async def samples(self, name: str, request: dict[str, Any]) -> Reply:
        """Samples, or a walk if there is a `to_seed`."""
        try:
            model = self.shelf.model(name or next(iter(self.shelf.models)))
            asked = (WalkRequest if "to_seed" in request else SampleRequest).model_validate(request)
            job, options = self._job(model, asked)
            served = await self.batcher.run(job)
            start = time.monotonic()
            body = await asyncio.to_thread(self._write, model, asked, job, options, served)
            return self._reply(model, asked, options, served, body, time.monotonic() - start)
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
            job, options = self._job(model, asked)

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
        await self.batcher.run(self._job(model, SampleRequest.model_validate({}))[0])

    # --- How

    def _job(self, model: Model, asked: Asked) -> tuple[Job, dict[str, Any]]:
        options = model.options(asked.options())
        if asked.n * options.get("steps", 1) > MOST_EVALUATIONS:
            message = f"{asked.n} samples of {options['steps']} steps are more than {MOST_EVALUATIONS:,} steps in all"
            raise Refused(422, message, "n" if asked.n > options["steps"] else "steps")
        if asked.layout == "single" and asked.n != 1:
            raise Refused(422, "layout=single is for one sample", "layout", "n=1, or layout=grid")
        if model.facts.is_points and (asked.layout == "single"):
            raise Refused(422, "points of the plane are no pictures", "layout", "layout=grid, or format=npy")
        facts, n = model.facts, asked.n
        word = "none" if asked.label is None else str(asked.label)
        if isinstance(asked, WalkRequest) and word == "all":
            raise Refused(422, "a walk stays within one class", "label", "name one, or leave the label out")
        try:
            labels = labels_for(word, n, facts) or [facts.classes] * n
        except UsageError as error:
            raise Refused(422, error.message, "label", error.hint) from error
        toward = None
        seeds: Sequence[int] = range(asked.seed, asked.seed + n)
        if isinstance(asked, WalkRequest):
            seeds, toward = [asked.seed] * n, [(asked.to_seed, i / (n - 1)) for i in range(n)]
        key = (self.shelf, model.name, toward is not None, json.dumps(options, sort_keys=True))
        return Job(key, seeds, labels, toward, time.monotonic() + self.deadline_s), options

    def _draw(
        self, job: Job, seeds: list[int], labels: list[int], toward: list[tuple[int, float]] | None, watch: Watcher
    ) -> Drawn:
        shelf, name, _, options = job.key  # the shelf of when it was asked: models may change meanwhile
        return shelf.engine(name).draw(seeds, labels, toward=toward, watch=watch, **json.loads(options))

    def _write(self, model: Model, asked: Asked, job: Job, options: dict[str, Any], served: Served) -> bytes:
        facts = model.facts
        match asked.format:
            case "npy":
                return preview.npy(served.images, facts)
            case "json":
                document = self._facts(model, asked, options, served)
                walk = {"to_seed": asked.to_seed} if isinstance(asked, WalkRequest) else {}
                document |= walk | {"labels": [int(v) if v < facts.classes else None for v in served.labels]}
                if facts.is_points:
                    document["points"] = served.images.reshape(-1, 2).tolist()
                    document["grid"] = base64.b64encode(preview.render(served.images, facts)).decode()
                else:
                    pngs = preview.pngs(served.images, facts)
                    document["images"] = [base64.b64encode(png).decode() for png in pngs]
                return json.dumps(document).encode()
            case "png" | "webp":
                single = asked.layout == "single"
                png = preview.pngs(served.images, facts)[0] if single else _sheet(asked, served, facts)
                return png if asked.format == "png" else _webp(png)

    def _facts(self, model: Model, asked: Asked, options: dict[str, Any], served: Served) -> dict[str, Any]:
        return {
            "schema": "genflow.samples/1", "model": model.name, "run": model.run.id, "step": model.step,
            "n": asked.n, "seed": asked.seed, "steps": options.get("steps"), "nfe": served.nfe, "options": options,
            "seconds": round(served.drawing, 4), "waited": round(served.waited, 4), "batch": served.rows,
        }  # fmt: skip

    def _reply(
        self, model: Model, asked: Asked, options: dict[str, Any], served: Served, body: bytes, writing: float
    ) -> Reply:
        headers = {
            "X-Genflow-Checkpoint": f"{model.run.id}@{model.step}",
            "X-Genflow-Seed": str(asked.seed),
            "X-Genflow-Steps": str(options.get("steps", "")),
            "X-Genflow-Nfe": str(served.nfe),
            "X-Genflow-Seconds": f"{served.drawing:.4f}",
            "X-Genflow-Batch": str(served.rows),
        }
        facts = {
            "model": model.name, "n": asked.n, "nfe": served.nfe, "rows": served.rows,
            "queue": served.waited, "draw": served.drawing, "write": writing,
        }  # fmt: skip
        return Reply(body, MEDIA[asked.format], headers=headers, facts=facts)

    async def _finish(
        self, model: Model, asked: Asked, job: Job, options: dict[str, Any], frames: "asyncio.Queue[Any]"
    ) -> Reply:
        try:
            served = await self.batcher.run(job)
            body = await asyncio.to_thread(self._write, model, asked, job, options, served)
            return self._reply(model, asked, options, served, body, 0.0)
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


def _sheet(asked: Asked, served: Served, facts: Facts) -> bytes:
    """The grid: of samples as `genflow sample` writes it, of a walk in one line."""
    if isinstance(asked, WalkRequest) and not facts.is_points:
        return preview.render(served.images, facts, min(asked.n, 16))
    return preview.render(served.images, facts, preview.columns(facts))


def _webp(png: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def _event(name: str, document: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(document)}\n\n".encode()


def listing(cards: list[dict[str, Any]]) -> Reply:
    """`GET /v1/models`."""
    return json_reply({"object": "list", "data": cards})
