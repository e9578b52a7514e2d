"""Scenes: one or two coloured shapes on white, each with a caption that the pixels prove, such as
`a red circle left of a blue square`.

A scene is one of 12 single shapes or of 264 arrangements of two. Every eighth arrangement of two is held out, although
its shapes and colours occur in training: the held-out scenes are unseen combinations of seen words. Sizes and positions
are a function of (seed, row).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations, product
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from genflow.data.images import fit
from genflow.data.sources import Opens
from genflow.data.sources.base import BadRecord, ImageSpec, ImageSummary, Record, Source
from genflow.recipe.schema import Data

OPENS = Opens(names=("scenes",), order=3)
COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220), "yellow": (240, 200, 30)}
SHAPES = ("circle", "square", "triangle")
SIDE = 32  # pixels
SCALE = 4  # shapes are drawn at this multiple of the size, so that their edges are smooth after the reduction
HELD_OUT_EVERY = 8

Thing = tuple[str, str]
"""A colour and a shape."""


@dataclass(frozen=True)
class Arrangement:
    """What a scene shows.

    Args:
        things: one or two coloured shapes; of two, the first is left of or above the second.
        relation: `left of` or `above`; empty for one shape.
    """

    things: tuple[Thing, ...]
    relation: str = ""

    @property
    def caption(self) -> str:
        """The scene in words."""
        return f" {self.relation} ".join(f"a {colour} {shape}" for colour, shape in self.things)


def arrangements() -> tuple[list[Arrangement], list[Arrangement]]:
    """The arrangements of the training rows, and those that are held out."""
    things = list(product(COLOURS, SHAPES))
    pairs = [Arrangement(pair, relation) for pair in permutations(things, 2) for relation in ("left of", "above")]
    train = [Arrangement((thing,)) for thing in things]
    train += [pair for number, pair in enumerate(pairs) if number % HELD_OUT_EVERY]
    return train, pairs[::HELD_OUT_EVERY]


def open_name(name: str, data: Data) -> Source:
    """The scenes: `data.samples` rows, of which the share `data.val` shows held-out arrangements."""
    return Scenes(data.samples, data.val, data.seed)


@dataclass
class Scenes(Source):
    """Coloured shapes with captions.

    Args:
        samples: number of scenes.
        held_out: the held-out share of them.
        seed: seed of the sizes and positions.
    """

    name: str = field(default="scenes", init=False)
    samples: int
    held_out: float
    seed: int

    @property
    def about(self) -> dict[str, Any]:
        return {"kind": "scenes", "path": "scenes"}

    def listing(self) -> list[list[Any]]:
        return [["scenes", self.samples, self.seed]]

    def splits(self) -> dict[str, int]:
        held = int(self.samples * self.held_out)
        return {"train": self.samples - held, **({"val": held} if held else {})}

    @property
    def captions(self) -> bool:
        return True

    def class_names(self) -> tuple[str, ...]:
        return ()

    def summarize(self, options: Data) -> ImageSummary:
        return ImageSummary(size=(SIDE, SIDE), colour=True)

    def part(self, split: str, rows: np.ndarray) -> "ScenesPart":
        kinds = self._arrangements[split != "train"]
        return ScenesPart([kinds[row % len(kinds)] for row in rows], split, rows, self.seed)

    @cached_property
    def _arrangements(self) -> tuple[list[Arrangement], list[Arrangement]]:
        return arrangements()


@dataclass(frozen=True)
class ScenesPart:
    """Some scenes.

    Args:
        shown: the arrangement of each row.
        split: the split of the rows.
        rows: their numbers.
        seed: seed of the sizes and positions.
    """

    shown: list[Arrangement]
    split: str
    rows: np.ndarray
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def summarize(self) -> ImageSummary:
        return ImageSummary(size=(SIDE, SIDE), colour=True)

    def records(self, spec: ImageSpec) -> Iterator[Record | BadRecord]:
        for row, shown in zip(self.rows, self.shown, strict=True):
            rng = np.random.default_rng([self.seed, int(self.split != "train"), int(row)])
            yield Record(f"{self.split}/{row}", fit(draw(shown, rng), spec), captions=(shown.caption,))


def draw(shown: Arrangement, rng: np.random.Generator) -> Image.Image:
    """Draw an arrangement at a random size and position: (32, 32) RGB."""
    side = SIDE * SCALE
    picture = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(picture)
    for number, (colour, shape) in enumerate(shown.things):
        radius = rng.uniform(0.12, 0.19) * side
        room = side / 4 if shown.relation else side / 2
        along = (2 * number + 1) * room + rng.uniform(-0.03, 0.03) * side  # of two shapes, each has its own half
        across = rng.uniform(radius, side - radius)
        if not shown.relation:
            along = rng.uniform(radius, side - radius)
        x, y = (across, along) if shown.relation == "above" else (along, across)
        _draw_shape(pen, shape, COLOURS[colour], x, y, radius)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def _draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, colour: tuple[int, int, int], x: float, y: float, radius: float
) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
