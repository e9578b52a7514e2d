"""Real pictures of a model's dataset: some to compare samples with, and the training pictures nearest to a picture."""

import base64
import heapq
from typing import Any

import numpy as np

from genflow.data import preview
from genflow.data.shards import Split
from genflow.serving.models import Model
from genflow.serving.responses import Reply, RequestError, json_reply
from genflow.serving.schemas import NearestRequest, RealRequest

MAX_ROWS = 50_000  # training pictures that `nearest` reads
ROWS = 1024  # pictures that are compared at once


def real(model: Model, request: RealRequest) -> Reply:
    """Some held-out pictures, chosen by a seed, with their labels; of training pictures if none are held out.

    Raises:
        RequestError: the dataset is not in the store, or there is no such class.
    """
    splits = _splits(model)
    name = "val" if "val" in splits and len(splits["val"]) else "train"
    split, classes = splits[name], list(model.facts.class_names)
    wanted = _classes(request.label, request.n, classes)
    rng = np.random.default_rng(abs(request.seed))
    order = rng.permutation(len(split))
    labels = split.labels_of(order)
    rows, used = [], dict.fromkeys([*range(len(classes)), None], 0)
    for one in wanted:
        fits = order if one is None else order[labels == one]
        if len(fits):
            rows.append(int(fits[used[one] % len(fits)]))
            used[one] += 1
    return _reply(model, {"split": name, "seed": request.seed}, split, np.asarray(rows, np.int64))


def nearest(model: Model, request: NearestRequest, records: list[np.ndarray]) -> Reply:
    """The training pictures with the smallest mean squared difference from one picture, at the model's size.

    Args:
        model: of the dataset.
        request: as it came.
        records: (H, W, C) grey levels of its picture, in a list of one.

    Raises:
        RequestError: the dataset is not in the store.
    """
    split = _splits(model)["train"]
    picture, seen = records[0].astype(np.float32), min(len(split), MAX_ROWS)
    found: list[tuple[float, int]] = []  # (-distance, row), a heap whose first entry is the farthest
    for start in range(0, seen, ROWS):
        rows = np.arange(start, min(start + ROWS, seen))
        apart = np.square(split.take(rows).astype(np.float32) - picture).mean((1, 2, 3))
        for row in np.argsort(apart)[: request.n]:
            heapq.heappush(found, (-float(apart[row]), int(rows[row])))
        while len(found) > request.n:
            heapq.heappop(found)
    best = sorted((-distance, row) for distance, row in found)
    levels = (model.facts.levels or 256) - 1
    root = [round(float(np.sqrt(distance)) / levels, 4) for distance, _ in best]
    chosen = np.asarray([row for _, row in best], np.int64)
    return _reply(model, {"split": "train", "compared": seen, "distances": root}, split, chosen)


def _splits(model: Model) -> dict[str, Split]:
    if model.dataset is None:
        message = "the model's dataset is not in the store" if not model.facts.is_points else "points have no pictures"
        raise RequestError(404, message, "model", "serve the run from the store with its dataset")
    return model.dataset.splits


def _classes(label: Any, n: int, classes: list[str]) -> list[int | None]:
    """The class of each of n pictures; None: any.

    Raises:
        RequestError: there is no such class.
    """
    if label in (None, "none") or not classes:
        return [None] * n
    if label == "all":
        return [i % len(classes) for i in range(n)]
    number = classes.index(label) if label in classes else int(label) if str(label).isdecimal() else -1
    if not 0 <= number < len(classes):
        raise RequestError(422, f"label {label}: no such class", "label", f"classes: {', '.join(classes[:20])}")
    return [number] * n


def _reply(model: Model, values: dict[str, Any], split: Split, rows: np.ndarray) -> Reply:
    labels = split.labels_of(rows).tolist() if model.facts.classes else [None] * len(rows)
    pngs = preview.pngs(split.take(rows), model.facts) if len(rows) else []
    images = [base64.b64encode(png).decode() for png in pngs]
    return json_reply({"schema": "genflow.pictures/1", "model": model.name, **values, "labels": labels,
                       "images": images})  # fmt: skip
