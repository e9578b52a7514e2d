"""An answer's body in the format that was asked for, and what its headers say."""

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from genflow.data import preview
from genflow.serving.batcher import Served
from genflow.serving.models import Model
from genflow.serving.responses import Reply
from genflow.serving.schemas import Asked, EncodeRequest, WalkRequest
from genflow.specs import DataSpec

MEDIA = {"png": "image/png", "webp": "image/webp", "json": "application/json", "npy": "application/x-npy"}


def body(model: Model, asked: Asked, options: dict[str, Any], served: Served) -> bytes:
    """The samples, or the codes."""
    facts = model.facts
    match asked.format:
        case "npy":
            return _npy(served.images) if isinstance(asked, EncodeRequest) else preview.npy(served.images, facts)
        case "json":
            return json.dumps(_document(model, asked, options, served)).encode()
        case "png" | "webp":
            png = preview.pngs(served.images, facts)[0] if asked.layout == "single" else _sheet(asked, served, facts)
            return png if asked.format == "png" else _webp(png)


def _document(model: Model, asked: Asked, options: dict[str, Any], served: Served) -> dict[str, Any]:
    facts = model.facts
    document: dict[str, Any] = {
        "schema": "genflow.samples/1", "model": model.name, "run": model.run.id, "step": model.step,
        "n": len(served.images), "seed": asked.seed, "steps": options.get("steps"), "nfe": served.nfe,
        "options": options, "seconds": round(served.drawing, 4), "waited": round(served.waited, 4),
        "batch": served.rows, "labels": [int(v) if v < facts.classes else None for v in served.labels],
    }  # fmt: skip
    if isinstance(asked, WalkRequest):
        document["to_seed"] = asked.to_seed
    if isinstance(asked, EncodeRequest):
        shape = list(served.images.shape)
        return document | {"schema": "genflow.codes/1", "shape": shape, "codes": _text(_npy(served.images))}
    if facts.is_points:
        points = served.images.reshape(-1, 2).tolist()
        return document | {"points": points, "grid": _text(preview.render(served.images, facts))}
    return document | {"images": [_text(png) for png in preview.pngs(served.images, facts)]}


def reply(
    model: Model, asked: Asked, options: dict[str, Any], served: Served, written: bytes, seconds: float
) -> Reply:
    """The answer.

    Args:
        model: that drew.
        asked: what was asked.
        options: the sampling options that were used, whole.
        served: what was drawn.
        written: the body.
        seconds: that writing it took.
    """
    headers = {
        "X-Genflow-Checkpoint": f"{model.run.id}@{model.step}",
        "X-Genflow-Seed": str(asked.seed),
        "X-Genflow-Steps": str(options.get("steps", "")),
        "X-Genflow-Nfe": str(served.nfe),
        "X-Genflow-Seconds": f"{served.drawing:.4f}",
        "X-Genflow-Batch": str(served.rows),
    }
    facts = {
        "model": model.name, "n": len(served.images), "nfe": served.nfe, "rows": served.rows,
        "queue": served.waited, "draw": served.drawing, "write": seconds,
    }  # fmt: skip
    return Reply(written, MEDIA[asked.format], headers=headers, facts=facts)


def _sheet(asked: Asked, served: Served, facts: DataSpec) -> bytes:
    """The grid: of samples as `genflow sample` writes it, of a walk in one line."""
    if isinstance(asked, WalkRequest) and not facts.is_points:
        return preview.render(served.images, facts, min(asked.n, 16))
    return preview.render(served.images, facts, preview.columns(facts))


def _webp(png: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
