"""The page of a store: its runs with samples, quality and time, and its datasets, in one HTML file."""

import base64
import io
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from genflow.commands import listing
from genflow.data.preview import thumbnail
from genflow.errors import DataError
from genflow.evaluation.metrics.base import number
from genflow.evaluation.metrics.likelihood import likelihood_text
from genflow.evaluation.report.html import template
from genflow.specs import DataSpec
from genflow.storage.manifest import warn
from genflow.storage.store import Store
from genflow.system.streams import NONE

TEMPLATE = Path(__file__).parent / "templates/store.html.j2"
SIDE = 220  # pixels of a thumbnail, at most
HEADS = (
    ("run", "text"), ("family", "text"), ("data", "text"), ("fd", "number"), ("× floor", "number"),
    ("bits/dim", "number"), ("minutes", "number"), ("made", "number"),
)  # fmt: skip


def render(store: Store, folder: Path | None = None) -> str:
    """The HTML of the page, which has the thumbnails.

    Args:
        store: whose runs and datasets it shows.
        folder: where the page will be; links to samples and reports are relative to it. None: the store's folder.
    """
    base = os.path.relpath(store.root, folder or store.root)
    rows = listing.sort_runs(listing.runs(store), "floor")
    reports = {run: artifact.id for artifact in store.artifacts("reports") for run in artifact.meta.get("runs", [])}
    return template(TEMPLATE).render(
        url=store.url,
        now=time.strftime("%Y-%m-%d %H:%M"),
        heads=HEADS,
        runs=[_run(store, row, reports, base) for row in rows],
        datasets=[_dataset(dataset) for dataset in store.artifacts("datasets")],
    )


def _run(store: Store, row: listing.RunRow, reports: dict[str, str], base: str) -> dict[str, Any]:
    states = {listing.FINISHED: "", listing.TRAINING: "training now", listing.UNFINISHED: "unfinished"}
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.made)) if row.made else states[row.state]
    likelihood = row.likelihood or {}
    values = (
        (row.run, row.run), (row.family, row.family), (row.dataset, row.dataset),
        (row.fd, number(row.fd) if row.fd is not None else NONE),
        (row.floors, f"{row.floors:.1f}" if row.floors else NONE),
        (likelihood.get("value"), likelihood_text(row.likelihood).partition(" ±")[0]),
        (row.minutes, f"{row.minutes:,.1f}" if row.minutes is not None else NONE),
        (row.made or time.time(), made),
    )  # fmt: skip
    cells = [
        {"value": "" if value is None else value, "text": text, "kind": kind, "link": ""}
        for (value, text), (_, kind) in zip(values, HEADS, strict=True)
    ]
    if row.run in reports:
        cells[0]["link"] = quote(f"{base}/reports/{reports[row.run]}/report.html")
    picture = listing.picture(store, row)
    link = quote(f"{base}/{row.picture.relative_to(store.root).as_posix()}") if row.picture else ""
    return {"name": row.name, "cells": cells, "link": link, "picture": _small(picture) if picture else ""}


def _dataset(dataset: Any) -> dict[str, str]:
    facts = DataSpec.from_json(dataset.meta["facts"])
    classes = f" · {facts.classes} classes" if facts.classes else ""
    text = f"{sum(facts.splits.values()):,} rows · {listing.pixels(facts)}{classes}"
    try:
        picture = _small(thumbnail(dataset))
    except DataError as error:
        warn(error)
        picture = ""
    return {"name": dataset.id, "text": text, "picture": picture}


def _small(png: bytes) -> str:
    """A picture as a data URI, made smaller if a side exceeds `SIDE` pixels."""
    image = Image.open(io.BytesIO(png))
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.convert("RGB").save(file, "WEBP", quality=80)
        return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
