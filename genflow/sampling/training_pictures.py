"""Samples that a training shows of itself: a picture at each moment, and all of them as an animation.

The seeds are fixed. A slow net draws fewer samples, with fewer evaluations, so that they take little of the budget.
"""

import contextlib
import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genflow import build
from genflow.data import preview
from genflow.data.shards import Dataset
from genflow.data.values import to_display
from genflow.sampling.engine import Engine
from genflow.storage.files import write_atomically

COLUMNS = 10
LINES = (6, 2, 1)  # of a grid, from a fast net to a slow one
LEAST = 4  # samples, which may cost up to EXTRA times the work that a moment has
EXTRA = 3
FEW_STEPS = 8  # of a sampler, for a net that is too slow for a line of samples
POINTS = 60, 2000  # fewest and most points of the plane
DECODING = 4  # evaluations that decoding latents is counted as
STRIP_SIDE, POINTS_SIDE = 64, 128  # largest side in pixels of a picture for the terminal
FRAME_MS, LAST_FRAME_MS = 600, 2500
SAMPLES, ANIMATION = "samples", "training.gif"  # names in a run's folder


@dataclass(frozen=True)
class Layout:
    """How many samples a picture has.

    Args:
        columns: samples per line.
        count: of all samples.
        options: of the sampler, in addition to the recipe's.
    """

    columns: int
    count: int
    options: dict[str, Any] = field(default_factory=dict)


class Samples:
    """The samples of one engine in training, of fixed seeds.

    With classes, each column has one class. Of an autoencoder they are held-out pictures above their reconstructions.

    Args:
        engine: with the weights to show.
        data: of the pictures or points.
    """

    def __init__(self, engine: Engine, data: Dataset) -> None:
        self.engine, self._data = engine, data
        self._layouts: dict[float, Layout] = {}

    def layout(self, work: float) -> Layout:
        """The largest layout that takes so many evaluations of one row; it is a function of the recipe alone."""
        if work not in self._layouts:
            self._layouts[work] = self._choose(work)
        return self._layouts[work]

    def draw(self, work: float, *, padded: bool = False) -> tuple[np.ndarray, Layout]:
        """Records (N, H, W, C), and their layout."""
        layout = self.layout(work)
        engine, count = self.engine, layout.count
        if engine.family.is_autoencoder:
            split = self._data.splits[self._data.reference]
            pairs = max(1, count // layout.columns // 2)
            columns = min(layout.columns, len(split))
            lines = np.linspace(0, len(split) - 1, pairs * columns).astype(int).reshape(pairs, columns)
            pictures = [split.take(line) for line in lines]
            both = [part for line in pictures for part in (line, engine.reconstruct(line))]
            return np.concatenate(both), Layout(columns, 2 * pairs * columns)
        conditions: dict[str, Any] = {}
        classes = engine.facts.classes
        if engine.prompts:
            captions = engine.prompts.examples(layout.columns)
            conditions["prompts"] = [captions[i % layout.columns] for i in range(count)]
        elif classes:  # of more classes than columns some are shown, evenly spread
            step = max(1.0, classes / layout.columns)
            conditions["labels"] = [int(i % layout.columns * step) % classes for i in range(count)]
        images = engine.draw(range(count), padded=padded, **conditions, **layout.options).images
        return images, layout

    @cached_property
    def limit(self) -> float | None:
        """The axis of points, the same in all pictures; None for pictures."""
        if not self.engine.facts.is_points:
            return None
        points = self._data.splits["train"].take(np.arange(min(4096, len(self._data.splits["train"]))))
        return 1.3 * float(np.abs(points).max())

    def _choose(self, work: float) -> Layout:
        if self.engine.family.is_autoencoder:
            lines = next((lines for lines in LINES if lines * COLUMNS / 2 <= work), 2)
            return Layout(COLUMNS, max(2, lines) * COLUMNS)
        options: dict[str, Any] = {}
        each = self._cost(options)
        if self.engine.facts.is_points:
            return Layout(COLUMNS, int(min(max(POINTS[0], work / each), POINTS[1])))
        for lines in LINES:
            if lines * COLUMNS * each <= work:
                return Layout(COLUMNS, lines * COLUMNS)
        if build.sample_options(self.engine.family, self.engine.options).get("steps", 0) > FEW_STEPS:
            options = {"steps": FEW_STEPS}
            each = self._cost(options)
        count = max(1, min(LEAST, int(EXTRA * work / each)), min(COLUMNS, int(work / each)))
        return Layout(count, count, options)

    def _cost(self, options: dict[str, Any]) -> float:
        """Evaluations of one row for one sample, from those of one step where the sampler has equal steps."""
        chosen = build.sample_options(self.engine.family, {**self.engine.options, **options})
        steps = chosen["steps"] if "steps" in chosen and chosen.get("sampler") != "rk45" else 1
        one = {**options, "steps": 1} if steps > 1 else options
        evaluations = steps * self.engine.draw([0], padded=False, **one).nfe
        return self.engine.family.drawing * evaluations + DECODING * (self.engine.autoencoder is not None)


def strip(records: np.ndarray, samples: Samples, layout: Layout) -> tuple[bytes, int]:
    """The first line of samples, or of reconstructions, as PNG bytes for a terminal, and their number."""
    facts = samples.engine.facts
    if facts.is_points:
        picture = Image.open(io.BytesIO(preview.render(records, facts, limit=samples.limit)))
        file = io.BytesIO()
        picture.resize((POINTS_SIDE, POINTS_SIDE), Image.Resampling.BOX).save(file, "PNG")
        return file.getvalue(), 1
    first = layout.columns if samples.engine.family.is_autoencoder else 0  # below the held-out pictures
    shown = to_display(records[first : first + layout.columns], facts)
    return preview.grid(np.stack([_small(image) for image in shown]), len(shown), scale=1), len(shown)


def _small(image: np.ndarray) -> np.ndarray:
    """A picture (H, W, C) of at most `STRIP_SIDE` pixels."""
    if (side := max(image.shape[:2])) <= STRIP_SIDE:
        return image
    height, width = (max(1, round(length * STRIP_SIDE / side)) for length in image.shape[:2])
    grey = image.shape[2] == 1
    resized = Image.fromarray(image[:, :, 0] if grey else image).resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized).reshape(height, width, -1)


def animate(frames: list[Path], last: bytes, out: Path) -> Path | None:
    """Write pictures of equal size as an animation that ends with `last`; None if there is none but the last.

    Args:
        frames: PNG files; those of another size are left out.
        last: the last picture as PNG.
        out: the GIF.
    """
    final = Image.open(io.BytesIO(last)).convert("RGB")
    images = []
    for file in frames:
        with contextlib.suppress(OSError), Image.open(file) as frame:
            if frame.size == final.size:
                images.append(frame.convert("RGB"))
    if not images:
        return None
    first, *rest = [*images, final]
    content = io.BytesIO()
    times = [FRAME_MS] * len(images) + [LAST_FRAME_MS]
    first.save(content, "GIF", save_all=True, append_images=rest, duration=times, loop=0)
    return write_atomically(out, content.getvalue())
