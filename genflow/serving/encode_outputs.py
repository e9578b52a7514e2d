"""Encode samples or codes in the requested format, with the headers that describe them."""

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from genflow.data import preview
from genflow.serving.batcher import RequestResult
from genflow.serving.models import Model
from genflow.serving.responses import Reply
from genflow.serving.schemas import EncodeRequest, ModelRequest, WalkRequest
from genflow.specs import DataSpec

MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "json": "application/json", "npy": "application/x-npy"}


def encode_body(model: Model, request: ModelRequest, options: dict[str, Any], result: RequestResult) -> bytes:
    """Return the samples or codes as the response body."""
    facts = model.facts
    match request.format:
        case "npy":
            return _npy(result.images) if isinstance(request, EncodeRequest) else preview.npy(result.images, facts)
        case "json":
            return json.dumps(_document(model, request, options, result)).encode()
        case "png" | "webp":
            png = preview.pngs(result.images, facts)[0] if request.layout == "single" else _grid(request, result, facts)
            return png if request.format == "png" else _webp(png)


def _document(model: Model, request: ModelRequest, options: dict[str, Any], result: RequestResult) -> dict[str, Any]:
    facts = model.facts
    document: dict[str, Any] = {
        "schema": "genflow.samples/1", "model": model.name, "run": model.run.id, "step": model.step,
        "n": len(result.images), "seed": request.seed, "steps": options.get("steps"), "nfe": result.nfe,
        "options": options, "seconds": round(result.drawing_seconds, 4), "waited": round(result.queue_seconds, 4),
        "batch": result.batch_rows, "labels": [int(v) if v < facts.classes else None for v in result.labels],
    }  # fmt: skip
    if isinstance(request, WalkRequest):
        document["to_seed"] = request.to_seed
    if isinstance(request, EncodeRequest):
        shape = list(result.images.shape)
        return document | {"schema": "genflow.codes/1", "shape": shape, "codes": _base64(_npy(result.images))}
    if facts.is_points:
        points = result.images.reshape(-1, 2).tolist()
        return document | {"points": points, "grid": _base64(preview.render(result.images, facts))}
    return document | {"images": [_base64(png) for png in preview.pngs(result.images, facts)]}


def build_reply(
    model: Model, request: ModelRequest, options: dict[str, Any], result: RequestResult, content: bytes, seconds: float
) -> Reply:
    """Build the response.

    Args:
        model: the model.
        request: the request.
        options: all sampling options that were used.
        result: the samples or codes.
        content: the body.
        seconds: time to encode the body.
    """
    headers = {
        "X-Genflow-Checkpoint": f"{model.run.id}@{model.step}",
        "X-Genflow-Seed": str(request.seed),
        "X-Genflow-Steps": str(options.get("steps", "")),
        "X-Genflow-Nfe": str(result.nfe),
        "X-Genflow-Seconds": f"{result.drawing_seconds:.4f}",
        "X-Genflow-Batch": str(result.batch_rows),
    }
    measurements = {
        "model": model.name, "n": len(result.images), "nfe": result.nfe, "rows": result.batch_rows,
        "queue": result.queue_seconds, "draw": result.drawing_seconds, "write": seconds,
    }  # fmt: skip
    return Reply(content, MEDIA_TYPES[request.format], headers=headers, measurements=measurements)


def _grid(request: ModelRequest, result: RequestResult, facts: DataSpec) -> bytes:
    """Return the grid as PNG: for samples as `genflow sample` writes it, for a walk in rows of up to 16."""
    if isinstance(request, WalkRequest) and not facts.is_points:
        return preview.render(result.images, facts, min(request.n, 16))
    return preview.render(result.images, facts, preview.columns(facts))


def _webp(png: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
