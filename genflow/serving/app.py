"""The HTTP interface: routes that call a `Backend`, the API documentation at `/docs`, and the playground at `/`."""

import dataclasses
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from genflow import __version__
from genflow.errors import plain
from genflow.serving import docs_page
from genflow.serving.middleware import Limits, RequestLimitsMiddleware
from genflow.serving.openapi import CODE_RESPONSES, ERROR, ERROR_RESPONSES, SAMPLE_RESPONSES
from genflow.serving.responses import Reply, RequestError, json_reply
from genflow.serving.schemas import (
    PROMPTS,
    DecodeRequest,
    EncodeRequest,
    ImagesRequest,
    ModelRequest,
    NearestRequest,
    PictureRequest,
    RealRequest,
    SampleRequest,
    Task,
    WalkRequest,
)
from genflow.system.documents import Json

DESCRIPTION = ("model", "run", "step", "seed", "steps", "nfe", "seconds", "cut")  # in answers in OpenAI's format
PLAYGROUND = Path(__file__).with_name("playground")
OnResponse = Callable[[str, str, int, float], None]  # method, path, status, seconds


class Backend(Protocol):
    """The part that draws samples: a `Service`, or a replica that wraps one."""

    async def answer(self, task: Task, name: str, request: ModelRequest | PictureRequest) -> Reply:
        """Return the response to one request; an error is a `Reply`, too."""

    def stream(self, name: str, request: SampleRequest) -> AsyncIterator[bytes]:
        """Yield server-sent events."""

    async def cards(self) -> list[Json]:
        """Return the description of every model."""

    async def health(self) -> Json:
        """Return the models and the state of the queue.

        Raises:
            Exception: no samples can be drawn.
        """


def create(
    backend: Backend, limits: Limits | None = None, on_response: OnResponse = lambda *_: None
) -> RequestLimitsMiddleware:
    """Build the ASGI app with its middleware.

    Args:
        backend: draws the samples.
        limits: bounds on requests.
        on_response: called after each response with method, path, status and seconds.
    """
    limits = limits or Limits()
    app = FastAPI(
        title="genflow",
        version=__version__,
        summary="Draw samples from trained generative models. The same seed gives the same sample.",
        docs_url=None,  # FastAPI's page loads scripts from another host
        openapi_url="/openapi.json" if limits.docs else None,
        redoc_url=None,
    )
    _add_error_handlers(app)
    page = playground_page()

    @app.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(page)

    if limits.docs:

        @app.get("/docs", include_in_schema=False)
        async def docs(request: Request) -> HTMLResponse:
            return HTMLResponse(docs_page.page(app.openapi(), str(request.base_url).rstrip("/")))

    @app.get("/healthz", tags=["about"], summary="Health")
    async def healthz(request: Request) -> Response:
        """200 with the models and the length of the queue; 503 if no replica answers."""
        try:
            return _respond(json_reply({"status": "ok", **await backend.health()}), request)
        except Exception as error:
            raise RequestError(503, f"no replica answers: {type(error).__name__}", retry_after=2) from error

    async def cards() -> list[Json]:
        def shown(card: Json) -> Json:
            abilities = card["abilities"]
            return {**card, "abilities": {**abilities, "real": abilities.get("real") and not _is_public(limits)}}

        return [shown(card) for card in await backend.cards()]

    @app.get("/v1/models", tags=["about"], summary="List the models: family, data, options, metrics, recipe, lineage")
    async def models(request: Request) -> Response:
        return _respond(json_reply({"object": "list", "data": await cards()}), request)

    @app.get("/v1/models/{name}", tags=["about"], summary="Describe one model", responses={404: ERROR})
    async def model(name: str, request: Request) -> Response:
        every = await cards()
        found = [card for card in every if card["id"] == name]
        if not found:
            known = ", ".join(card["id"] for card in every)
            raise RequestError(404, f"there is no model {name!r}", "model", f"models: {known}")
        return _respond(json_reply(found[0]), request)

    @app.post("/v1/models/{name}/samples", tags=["samples"], summary="Draw samples", response_class=Response,
              responses={**SAMPLE_RESPONSES, **ERROR_RESPONSES})  # fmt: skip
    async def samples(name: str, payload: SampleRequest, request: Request) -> Response:
        """Draw `n` samples from `seed`, `seed + 1`, ... The same seed gives the same sample in any batch.

        Other keys are options of the model's family, such as `temperature`; `GET /v1/models` lists them.
        """
        return _respond(await backend.answer("samples", name, payload), request)

    @app.post("/v1/models/{name}/samples/stream", tags=["samples"], summary="Stream the steps of sampling",
              response_class=StreamingResponse, responses=ERROR_RESPONSES)  # fmt: skip
    async def stream(name: str, payload: SampleRequest, request: Request) -> Response:
        """Server-sent events: `step` {evaluation, noisy, guess} at each network evaluation, then `done` or `error`.

        `noisy` holds the current state of each sample and `guess` the predicted final sample, as base64 PNG.
        """
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(backend.stream(name, payload), media_type="text/event-stream", headers=headers)

    @app.post("/v1/models/{name}/walks", tags=["samples"], summary="Interpolate between two seeds",
              response_class=Response, responses={**SAMPLE_RESPONSES, **ERROR_RESPONSES})  # fmt: skip
    async def walks(name: str, payload: WalkRequest, request: Request) -> Response:
        """Draw `n` samples by spherical interpolation between the noises of `seed` and `to_seed`.

        The first and the last are the samples of these two seeds.
        """
        return _respond(await backend.answer("walks", name, payload), request)

    @app.post("/v1/models/{name}/encode", tags=["codes"], summary="Encode images",
              responses={**CODE_RESPONSES, **ERROR_RESPONSES})  # fmt: skip
    async def encode(name: str, payload: EncodeRequest, request: Request) -> Response:
        """Return the codes from which the model reconstructs the images: their noise, or their latent vectors."""
        return _respond(await backend.answer("encode", name, payload), request)

    @app.post("/v1/models/{name}/decode", tags=["codes"], summary="Decode codes into images", response_class=Response,
              responses={**SAMPLE_RESPONSES, **ERROR_RESPONSES})  # fmt: skip
    async def decode(name: str, payload: DecodeRequest, request: Request) -> Response:
        """The inverse of `encode`. Codes interpolated between two codes give images between two images."""
        return _respond(await backend.answer("decode", name, payload), request)

    @app.post("/v1/models/{name}/real", tags=["pictures"], summary="Real pictures of the dataset",
              responses=ERROR_RESPONSES)  # fmt: skip
    async def real(name: str, payload: RealRequest, request: Request) -> Response:
        """Held-out pictures; on the loopback without keys only, because they are a person's own."""
        _require_own(limits)
        return _respond(await backend.answer("real", name, payload), request)

    @app.post("/v1/models/{name}/nearest", tags=["pictures"], summary="The training pictures nearest to a picture",
              responses=ERROR_RESPONSES)  # fmt: skip
    async def nearest(name: str, payload: NearestRequest, request: Request) -> Response:
        """By the mean squared difference of pixels at the model's size; on the loopback without keys only."""
        _require_own(limits)
        return _respond(await backend.answer("nearest", name, payload), request)

    @app.post("/v1/images/generations", tags=["samples"], summary="OpenAI-compatible image generation",
              responses=ERROR_RESPONSES)  # fmt: skip
    async def generations(payload: ImagesRequest, request: Request) -> Response:
        """The prompt is a caption or, for models of classes, the name of a class.

        Returns `{created, data: [{b64_json}]}`.
        """
        every = await backend.cards()
        card = next((card for card in every if card["id"] == (payload.model or every[0]["id"])), None)
        options = _sample_options(payload, card)
        reply = await backend.answer("samples", payload.model or "", SampleRequest.model_validate(options))
        if reply.status != 200:
            return _respond(reply, request)
        drawn = json.loads(reply.body)
        pictures = drawn.pop("images", None) or [drawn.pop("grid")]
        document = {
            "created": int(time.time()), "data": [{"b64_json": picture} for picture in pictures],
            "genflow": {key: drawn[key] for key in DESCRIPTION if key in drawn},
        }  # fmt: skip
        answer = json_reply(document)
        return _respond(dataclasses.replace(answer, headers=reply.headers), request)

    return RequestLimitsMiddleware(app, limits, on_response)


def playground_page() -> str:
    """The playground as one page: `page.html` with the style sheet and the scripts that it names."""
    page = (PLAYGROUND / "page.html").read_text(encoding="utf-8")

    def part(match: re.Match[str]) -> str:
        return (PLAYGROUND / match[1]).read_text(encoding="utf-8")

    return re.sub(r"/\* ([\w.]+) \*/\n", part, page)


def _is_public(limits: Limits) -> bool:
    """Whether others call the endpoint, by a key or another host name; the real pictures are a person's own."""
    return bool(limits.keys or limits.hosts)


def _require_own(limits: Limits) -> None:
    """Check that only this machine calls the endpoint.

    Raises:
        RequestError: others call it.
    """
    if _is_public(limits):
        message = "an endpoint with keys or other host names shows no real pictures"
        raise RequestError(403, message, hint="serve on the loopback, without keys")


def _sample_options(payload: ImagesRequest, card: Json | None) -> Json:
    """The fields of a `SampleRequest` for a request in OpenAI's format.

    Raises:
        RequestError: the size is not that of the model's images, or the prompt is no class of a model of classes.
    """
    options: Json = {"n": payload.n, "seed": payload.seed, "format": "json"}
    names = ("steps", "guidance", "negative_prompt")
    options |= {key: value for key in names if (value := getattr(payload, key)) is not None}
    if card is None:
        return options  # the answer says that there is no such model
    size = f"{card['data']['shape'][2]}x{card['data']['shape'][1]}"
    if payload.size not in ("auto", size):
        raise RequestError(422, f"this model produces images of {size}", "size", f"use size={size} or size=auto")
    if card["abilities"]["prompts"]:
        return options | ({"prompt": payload.prompt} if payload.prompt else {})
    classes = card["data"]["classes"]
    known = payload.prompt in (*classes, "all", "none", "") or (
        payload.prompt.isdecimal() and len(payload.prompt) < 10 and int(payload.prompt) < len(classes)
    )
    if not known:
        hint = f"classes: {', '.join(classes[:20])}" if classes else "send an empty prompt"
        has = "classes, not captions" if classes else "no captions"
        message = f"prompt: this model has {has}, and {payload.prompt[:40]!r} is no class"
        raise RequestError(400, message, "prompt", hint)
    return options | {"label": payload.prompt or "all"}


def _respond(reply: Reply, request: Request) -> Response:
    body = reply.body
    if reply.status >= 400:  # the backend does not know the request's id
        document = json.loads(body)
        document["error"]["request"] = request.state.request
        body = json.dumps(document).encode()
    return Response(body, reply.status, reply.headers, reply.media_type)


def _add_error_handlers(app: FastAPI) -> None:
    """Return every error in the same format."""

    async def request_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return _respond(error.reply(), request)

    async def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part not in ("body", "path", "query")]
        key = where[0] if where else None
        message = f"{key}: {plain(first['msg'])}" if key else plain(first["msg"])
        return _respond(RequestError(400 if key in PROMPTS else 422, message, key).reply(), request)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        messages = {
            404: f"there is nothing at {request.url.path}",
            405: f"{request.url.path} does not allow {request.method}",
        }
        message = messages.get(error.status_code, str(error.detail))
        reply = RequestError(error.status_code, message, hint="see /docs").reply()
        return _respond(Reply(reply.body, reply.media_type, reply.status, dict(error.headers or {})), request)

    async def internal_error(request: Request, error: Exception) -> Response:
        return _respond(RequestError(500, "internal error; see the server's log").reply(), request)

    app.add_exception_handler(RequestError, request_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, internal_error)
