"""Encode samples or codes in the requested format, with the headers that describe them."""

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from genflow.data import preview
from genflow.serving.batcher import RequestResult
from genflow.serving.conditions import CheckedRequest, Condition, Words, grid_columns
from genflow.serving.responses import Reply
from genflow.serving.schemas import EncodeRequest, WalkRequest
from genflow.specs import DataSpec

MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "json": "application/json", "npy": "application/x-npy"}


def encode_body(checked: CheckedRequest, result: RequestResult) -> bytes:
    """Return the samples or codes as the response body."""
    request, facts = checked.request, checked.model.facts
    match request.format:
        case "npy":
            return _npy(result.images) if isinstance(request, EncodeRequest) else preview.npy(result.images, facts)
        case "json":
            return json.dumps(_document(checked, result)).encode()
        case "png" | "webp":
            png = preview.pngs(result.images, facts)[0] if request.layout == "single" else _grid(checked, result)
            return png if request.format == "png" else _webp(png)


def _document(checked: CheckedRequest, result: RequestResult) -> dict[str, Any]:
    model, request, options, facts = checked.model, checked.request, checked.options, checked.model.facts
    document: dict[str, Any] = {
        "schema": "genflow.samples/1", "model": model.name, "run": model.run.id, "step": model.step,
        "n": len(result.images), "seed": request.seed, "steps": options.get("steps"), "nfe": result.nfe,
        "options": options, "seconds": round(result.drawing_seconds, 4), "waited": round(result.queue_seconds, 4),
        "batch": result.batch_rows, "labels": [_label(each, facts) for each in checked.conditions],
    }  # fmt: skip
    if words := [each for each in checked.conditions if isinstance(each, Words)]:
        document |= {"prompts": [each.prompt for each in words], "negative_prompt": words[0].negative}
        document |= {"cut": _cut(checked) or None}
    if isinstance(request, WalkRequest):
        document["to_seed"] = request.to_seed
        if request.to_prompt is not None:
            document |= {"prompts": [request.prompt or "", request.to_prompt]}
    if isinstance(request, EncodeRequest):
        shape = list(result.images.shape)
        return document | {"schema": "genflow.codes/1", "shape": shape, "codes": _base64(_npy(result.images))}
    if facts.is_points:
        points = result.images.reshape(-1, 2).tolist()
        return document | {"points": points, "grid": _base64(preview.render(result.images, facts))}
    return document | {"images": [_base64(png) for png in preview.pngs(result.images, facts)]}


def _label(condition: Condition, facts: DataSpec) -> int | None:
    return condition if isinstance(condition, int) and condition < facts.classes else None


def _cut(checked: CheckedRequest) -> str:
    """Tokens that are read of the longest prompt, and all its tokens, `16/62`; empty if no prompt is cut."""
    return f"{checked.model.prompts.spec.length}/{checked.cut}" if checked.cut and checked.model.prompts else ""


def build_reply(checked: CheckedRequest, result: RequestResult, content: bytes, seconds: float) -> Reply:
    """Build the response.

    Args:
        checked: the request.
        result: the samples or codes.
        content: the body.
        seconds: time to encode the body.
    """
    model, request = checked.model, checked.request
    headers = {
        "X-Genflow-Checkpoint": f"{model.run.id}@{model.step}",
        "X-Genflow-Seed": str(request.seed),
        "X-Genflow-Steps": str(checked.options.get("steps", "")),
        "X-Genflow-Nfe": str(result.nfe),
        "X-Genflow-Seconds": f"{result.drawing_seconds:.4f}",
        "X-Genflow-Batch": str(result.batch_rows),
    }
    if cut := _cut(checked):
        headers["X-Genflow-Cut"] = cut
    measurements = {
        "model": model.name, "n": len(result.images), "nfe": result.nfe, "rows": result.batch_rows,
        "queue": result.queue_seconds, "draw": result.drawing_seconds, "write": seconds,
    }  # fmt: skip
    return Reply(content, MEDIA_TYPES[request.format], headers=headers, measurements=measurements)


def _grid(checked: CheckedRequest, result: RequestResult) -> bytes:
    """Return the grid as PNG: for samples as `genflow sample` writes it, for a walk in rows of up to 16."""
    request, facts = checked.request, checked.model.facts
    if isinstance(request, WalkRequest) and not facts.is_points:
        return preview.render(result.images, facts, min(request.n, 16))
    columns = grid_columns(checked) or preview.columns(facts)
    return preview.render(result.images, facts, columns)


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
