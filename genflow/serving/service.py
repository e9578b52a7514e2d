"""The models of one replica: turns a request into a response. An error in a request is a `Reply`, too."""

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
from genflow.sampling.engine import SampleBatch
from genflow.serving import decode_inputs, encode_outputs, real_pictures
from genflow.serving.batcher import Batcher, QueuedRequest
from genflow.serving.conditions import CheckedRequest, Condition, Words, check_words, conditions_of
from genflow.serving.engine_process import Batch, EngineProcess, StepFrame
from genflow.serving.model_list import ServedModel, list_version
from genflow.serving.models import Model, find_model
from genflow.serving.responses import Reply, RequestError
from genflow.serving.schemas import (
    MAX_EVALUATIONS,
    DecodeRequest,
    EncodeRequest,
    ModelRequest,
    NearestRequest,
    PictureRequest,
    RealRequest,
    SampleRequest,
    Task,
    WalkRequest,
)
from genflow.specs import DataSpec

STALL_TIMEOUT_S = 60.0  # without a network evaluation, the drawing thread counts as hung


class Service:
    """The models of a replica, with their queue and engine process.

    Args:
        models: the models; the first is the default.
        max_bytes: limit of the engines' memory.
        deadline_s: time limit of a request.
        rows: largest number of samples in a batch.
        max_queued: largest number of requests in the queue.
        on_engine_exit: called when the engine process has ended unexpectedly; it need not return.
    """

    def __init__(
        self, models: Sequence[ServedModel], *, max_bytes: int = 2**31, deadline_s: float = 60.0, rows: int = 64,
        max_queued: int = 128, on_engine_exit: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.models = {entry.name: Model(entry) for entry in models}
        self.version = list_version(models)
        self.max_bytes, self.deadline_s = max_bytes, deadline_s
        self.engine_process = EngineProcess(max_bytes, on_engine_exit)
        self.batcher = Batcher(self._draw, rows=rows, max_queued=max_queued)

    # --- Requests

    async def answer(self, task: Task, name: str, request: ModelRequest | PictureRequest) -> Reply:
        """Answer a request for samples, a walk, codes of images, images of codes, or real pictures."""
        try:
            model = find_model(self.models, name)
            if isinstance(request, RealRequest):
                return await asyncio.to_thread(real_pictures.real, model, request)
            if isinstance(request, NearestRequest):
                records = await decode_inputs.parse_in_pool(model, request, self.deadline_s)
                return await asyncio.to_thread(real_pictures.nearest, model, request, records)
            queued, checked = await self._queue_request(model, task, request)
            result = await self.batcher.run(queued)
            start = time.monotonic()
            body = await asyncio.to_thread(encode_outputs.encode_body, checked, result)
            return encode_outputs.build_reply(checked, result, body, time.monotonic() - start)
        except RequestError as error:
            return error.reply()

    async def stream(self, name: str, request: SampleRequest) -> AsyncIterator[bytes]:
        """Yield server-sent events: `step` with the intermediate samples, then `done` with the samples, or `error`."""
        frames: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        task: asyncio.Task[Reply] | None = None
        try:
            model = find_model(self.models, name)
            request = request.model_copy(update={"format": "json"})
            if request.n > self.batcher.rows:
                raise RequestError(422, f"at most {self.batcher.rows} samples can be streamed", "n")
            queued, checked = await self._queue_request(model, "samples", request)

            def put(frame: dict[str, Any]) -> None:
                loop.call_soon_threadsafe(frames.put_nowait, frame)

            queued.on_frame = _FrameEncoder(model.facts, put)
            task = loop.create_task(self._run_to_end(checked, queued, frames))
            while (frame := await frames.get()) is not None:
                yield _event("step", frame)
            reply = await task
            yield _event("done", json.loads(reply.body))
        except RequestError as error:
            yield _event("error", json.loads(error.reply().body))
        finally:
            if task:
                task.cancel()

    async def cards(self) -> list[dict[str, Any]]:
        """Return the description of every model."""
        loaded = self.loaded()
        return [{**model.card, "loaded": name in loaded} for name, model in self.models.items()]

    async def health(self) -> dict[str, Any]:
        """Return the models and the state of the queue.

        Raises:
            RuntimeError: the engine process is dead or hung.
        """
        self.check()
        return {
            "version": self.version, "models": list(self.models), "loaded": self.loaded(),
            "waiting": self.batcher.waiting, "backlog_s": round(self.batcher.backlog(), 2),
        }  # fmt: skip

    def loaded(self) -> list[str]:
        """Return the names of the models in memory, the most recently used last."""
        at = {path: place for place, path in enumerate(self.engine_process.loaded)}
        held = [model for model in self.models.values() if model.entry.path in at]
        return [model.name for model in sorted(held, key=lambda model: at[model.entry.path])]

    def check(self) -> None:
        """Check that the engine process is alive and makes progress.

        Raises:
            RuntimeError: it is dead or hung; the replica must be replaced.
        """
        self.engine_process.check()
        silent = time.monotonic() - self.batcher.last_progress
        if self.batcher.busy and silent > STALL_TIMEOUT_S:
            raise RuntimeError(f"no network evaluation for {silent:.0f} s")

    async def change(self, models: Sequence[ServedModel]) -> None:
        """Replace the models. Load the new ones first; if one cannot be loaded, keep the old ones and raise."""
        if list_version(models) == self.version:
            return
        new = {entry.name: Model(entry) for entry in models}
        held = 0
        for model in new.values():
            held += model.bytes
            if held <= self.max_bytes or held == model.bytes:
                await self.batcher.call_in_thread(functools.partial(self.engine_process.load, model.entry))
        self.models, self.version = new, list_version(models)

    async def warm(self) -> None:
        """Load the first model and draw one sample from it."""
        model = next(iter(self.models.values()))
        queued, _ = await self._queue_request(model, "samples", SampleRequest.model_validate({}))
        await self.batcher.run(queued)

    # --- Internals

    async def _queue_request(
        self, model: Model, task: Task, request: ModelRequest
    ) -> tuple[QueuedRequest, CheckedRequest]:
        inputs: list[Any] | None = None
        seeds: Sequence[int]
        if isinstance(request, EncodeRequest | DecodeRequest):
            options: dict[str, Any] = {}
            records = await decode_inputs.parse_in_pool(model, request, self.deadline_s)
            inputs, seeds = records, range(request.seed, request.seed + len(records))
        else:
            options, n = model.options(request.options()), request.n
            seeds = range(request.seed, request.seed + n)
        if isinstance(request, WalkRequest):
            seeds = [request.seed] * n
            moves = request.to_seed != request.seed
            inputs = [(request.to_seed, moves * i / (n - 1)) for i in range(n)]
        _check_size(model, request, len(seeds), options)
        conditions = conditions_of(model, request, len(seeds), options)
        words = [each for each in dict.fromkeys(conditions) if isinstance(each, Words)]
        cut = await asyncio.to_thread(check_words, model, words) if words else 0
        key = (model.entry, task, json.dumps(options, sort_keys=True))
        queued = QueuedRequest(key, seeds, conditions, inputs, time.monotonic() + self.deadline_s)
        return queued, CheckedRequest(model, request, options, conditions, cut)

    def _draw(
        self,
        queued: QueuedRequest,
        seeds: list[int],
        conditions: list[Condition],
        inputs: list[Any],
        on_evaluation: Callable[[], None],
    ) -> SampleBatch:
        entry, task, options = queued.key  # the model at the time of the request: the list may have changed since
        frames = queued.on_frame is not None
        batch = Batch(entry, task, json.loads(options), seeds, conditions, inputs, send_frames=frames)
        try:
            drawn: SampleBatch = self.engine_process.draw(batch, on_evaluation, queued.on_frame)
        except UsageError as error:  # an option that only drawing can judge; the message begins with its name
            field = error.message.partition(":")[0]
            raise RequestError(422, error.message, field if field.isidentifier() else None, error.hint) from error
        return drawn

    async def _run_to_end(
        self, checked: CheckedRequest, queued: QueuedRequest, frames: "asyncio.Queue[Any]"
    ) -> Reply:
        try:
            result = await self.batcher.run(queued)
            body = await asyncio.to_thread(encode_outputs.encode_body, checked, result)
            return encode_outputs.build_reply(checked, result, body, 0.0)
        finally:
            frames.put_nowait(None)

    def close(self) -> None:
        """Stop the batcher and the engine process."""
        self.batcher.close()
        self.engine_process.close()


def _check_size(model: Model, request: ModelRequest, n: int, options: dict[str, Any]) -> None:
    """Check the cost of n samples, and that the layout fits them.

    Raises:
        RequestError: it is too large, or does not fit.
    """
    if n * options.get("steps", 1) > MAX_EVALUATIONS:
        message = f"{n} samples x {options['steps']} steps exceed {MAX_EVALUATIONS:,} steps in total"
        raise RequestError(422, message, "n" if n > options["steps"] else "steps")
    if request.layout == "single" and n != 1:
        raise RequestError(422, "layout=single needs n=1", "layout", "use n=1 or layout=grid")
    if model.facts.is_points and request.layout == "single":
        message = "layout=single is for images, and this model produces points"
        raise RequestError(422, message, "layout", "use layout=grid or format=npy")


class _FrameEncoder:
    """Encodes intermediate samples and passes them to `put`. Called in the drawing thread."""

    def __init__(self, facts: DataSpec, put: Callable[[dict[str, Any]], None]) -> None:
        self._facts, self._put = facts, put

    def __call__(self, frame: StepFrame) -> None:
        evaluation, noisy, guess = frame
        document: dict[str, Any] = {"evaluation": evaluation}
        for name, records in (("noisy", noisy), ("guess", guess)):
            if self._facts.is_points:
                document[name] = np.round(records.reshape(-1, 2), 4).tolist()
            else:
                document[name] = [base64.b64encode(png).decode() for png in preview.pngs(records, self._facts)]
        self._put(document)


def _event(name: str, document: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(document)}\n\n".encode()
