"""Draw records as PNG bytes: a grid of images, or a density plot of points of the plane; and describe a dataset."""

import io
import math
from typing import Any

import numpy as np
from PIL import Image

from genflow.data.shards import Dataset, Split
from genflow.data.values import to_display
from genflow.errors import UsageError
from genflow.specs import DataSpec
from genflow.storage.artifact import Artifact

CELL = 64  # pixels: a small picture is enlarged up to this size
GAP = 2
THUMBNAILS = 8  # pictures of a dataset in a list
EXAMPLES = 2  # captions that describe a dataset
BACKGROUND = 216  # grey level between pictures: neither black nor white, so that the edges of both are visible
INK = np.array((31, 58, 147))


def render(records: np.ndarray, facts: DataSpec, columns: int | None = None, limit: float | None = None) -> bytes:
    """Draw the records that `from_x` returns: a grid of pictures, or points of the plane, as PNG bytes.

    Args:
        records: (N, H, W, C) grey levels 0..K-1, or (N, 1, 1, 2) points.
        facts: the dataset's specification.
        columns: pictures per row.
        limit: show points from -limit to limit; None: nearly all points.
    """
    if facts.is_points:
        return scatter(records.reshape(-1, 2), limit)
    return grid(to_display(records, facts), columns)


def columns(facts: DataSpec) -> int | None:
    """Samples per row of a grid: the number of classes, if it is 2 to 20; else None."""
    return facts.classes if 1 < facts.classes <= 20 else None


def grid(images: np.ndarray, columns: int | None = None, scale: int | None = None) -> bytes:
    """Draw pictures in a grid, row by row, as PNG bytes.

    Args:
        images: (N, H, W, C) uint8, C = 1 or 3.
        columns: pictures per row; None: a nearly square grid.
        scale: enlargement by repeating pixels; None: enlarge small pictures to about 64 pixels.
    """
    count, height, width, channels = images.shape
    columns = min(columns or math.ceil(math.sqrt(max(count, 1))), max(count, 1))
    lines = math.ceil(count / columns)
    scale = scale or max(1, CELL // max(height, width))
    images = images.repeat(scale, 1).repeat(scale, 2)
    height, width = height * scale + GAP, width * scale + GAP
    sheet = np.full((max(lines, 1) * height + GAP, columns * width + GAP, channels), BACKGROUND, np.uint8)
    for number, image in enumerate(images):
        top, left = (number // columns) * height + GAP, (number % columns) * width + GAP
        sheet[top : top + height - GAP, left : left + width - GAP] = image
    return _png(sheet)


def scatter(points: np.ndarray, limit: float | None = None, side: int = 512) -> bytes:
    """Draw points of the plane as PNG bytes: a place with more points is darker.

    Args:
        points: (N, 2), x to the right and y upwards.
        limit: show -limit to limit; None: all but the outermost 1 in 1,000 points, with a margin.
        side: width and height of the PNG in pixels.
    """
    points = points[np.isfinite(points).all(1)]
    if limit is None:
        limit = 1.1 * float(np.quantile(np.abs(points), 0.999)) if len(points) else 1.0
    limit = limit or 1.0
    cells = side // 2  # each bin is drawn as 2 x 2 pixels
    counts, _, _ = np.histogram2d(-points[:, 1], points[:, 0], bins=cells, range=[[-limit, limit]] * 2)
    occupied = counts[counts > 0]
    typical = float(np.median(occupied)) if occupied.size else 1.0
    darkness = 1 - np.exp(-1.2 * counts / typical)
    colours = 255 - darkness[:, :, None] * (255 - INK)
    return _png(np.rint(colours).astype(np.uint8).repeat(2, 0).repeat(2, 1))


def pngs(records: np.ndarray, facts: DataSpec) -> list[bytes]:
    """Each record as a PNG file, at its own size.

    Raises:
        UsageError: the records are points of the plane.
    """
    if facts.is_points:
        raise UsageError("points of the plane cannot be saved as pictures", "use --out samples.npy or grid.png")
    return [_png(image) for image in to_display(records, facts)]


def npy(records: np.ndarray, facts: DataSpec) -> bytes:
    """The records as a NumPy file: (N, C, H, W) uint8 0..255, or (N, 2, 1, 1) float32 points."""
    shown = records if facts.is_points else to_display(records, facts)
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(shown.transpose(0, 3, 1, 2)))
    return file.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def preview(dataset: Dataset) -> bytes:
    """Draw a part of the training split as PNG bytes: a row of pictures per class (up to 16), or 64 pictures."""
    split, facts = dataset.splits["train"], dataset.facts
    if facts.is_points:
        return render(split.take(np.arange(min(len(split), 20_000))), facts)
    if facts.classes:
        return grid(*_lines_of_classes(split, facts))
    rows = np.unique(np.linspace(0, len(split) - 1, 64).astype(int))
    return render(split.take(rows), facts)


def _lines_of_classes(split: Split, facts: DataSpec) -> tuple[np.ndarray, int]:
    """The first pictures of each class, class by class, filled up with blanks; and the number per class."""
    shown = min(facts.classes, 16)
    columns = 10
    C, H, W = facts.shape
    images = np.full((shown * columns, H, W, C), BACKGROUND, np.uint8)
    for label in range(shown):
        rows = np.flatnonzero(split.labels == label)[:columns]
        if len(rows):
            images[label * columns :][: len(rows)] = to_display(split.take(rows), facts)
    return images, columns


def thumbnail(artifact: Artifact) -> bytes:
    """A row of a dataset's pictures, one of each class if it has several, as PNG."""
    dataset = Dataset.open(artifact, verify=False)
    split, facts = dataset.splits["train"], dataset.facts
    if facts.is_points:
        return preview(dataset)
    rows = np.arange(min(THUMBNAILS, len(split)))
    if facts.classes > 1:
        found, first = np.unique(split.labels, return_index=True)
        rows = first[np.linspace(0, len(found) - 1, min(THUMBNAILS, len(found))).astype(int)]
    return render(split.take(rows), facts, len(rows))


def describe(dataset: Dataset) -> dict[str, Any]:
    """Describe a dataset as a `genflow.data/1` document."""
    artifact, facts = dataset.artifact, dataset.facts
    return {
        "schema": "genflow.data/1",
        "dataset": artifact.id,
        "name": artifact.name,
        "path": str(artifact.path),
        "created": artifact.manifest.get("created"),
        "source": artifact.meta.get("source", {}),
        "options": artifact.meta.get("options", {}),
        "facts": facts.to_json(),
        **({"captions": captions(dataset)} if facts.captions else {}),
        "shards": {name: len(split.tables) for name, split in dataset.splits.items()},
        "bytes": sum(file["size"] for file in artifact.manifest["files"].values()),
        "bad": artifact.meta.get("bad", 0),
        "skipped": artifact.meta.get("skipped", {}),
        "warnings": artifact.meta.get("warnings", []),
    }


def captions(dataset: Dataset) -> dict[str, Any]:
    """The number of rows with captions, and the first captions of two rows that differ."""
    every = [texts for split in dataset.splits.values() for texts in split.captions]
    examples = list(dict.fromkeys(texts[0] for texts in every if texts))[:EXAMPLES]
    return {"rows": sum(map(bool, every)), "examples": examples}
