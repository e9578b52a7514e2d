"""The first screen of a report: a row of samples for each run, cut out of the grids of the evaluations.

All grids have the same layout and the same seeds (`sample_grids`), so equal places of the rows can be compared.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from genflow.data.preview import CELL, GAP
from genflow.evaluation.metrics.base import number
from genflow.evaluation.report.html import columns, data_uri
from genflow.evaluation.sample_grids import CLASSES, COLUMNS, shown_classes
from genflow.specs import DataSpec

TILES = 10  # pictures of a row
TILE_PIXELS = 192  # of a side, at most: twice what a wide screen shows
NARROW = 5  # pictures per line on a narrow screen, at most
SMOOTH = 48  # pixels of a side


@dataclass(frozen=True)
class Strip:
    """A row of samples.

    Args:
        title: the name of the run.
        index: selects its colour; None: real data.
        file: grid.png of an evaluation, or real.png.
        score: the number that sums it up, such as "2.4 ×".
        unit: of the score.
        value: the number that the score was made from, such as "fd 2.01".
        facts: the line below, from `joined`.
        prompts: of the pictures of the grid, for a run of captions.
    """

    title: str
    index: int | None
    file: Path
    score: str = ""
    unit: str = ""
    value: str = ""
    facts: str = ""
    prompts: Sequence[str] = ()


@dataclass(frozen=True)
class Embedded:
    """A row of samples as the page contains it: the texts of `Strip`, and its pictures.

    Args:
        title, index, score, unit, value, facts: those of the strip.
        tiles: the pictures as data URIs.
        captions: the class or the prompt of each.
        whole: the whole grid as a data URI.
        prompted: whether the captions are prompts.
        narrow: pictures per line on a narrow screen.
    """

    title: str
    index: int | None
    score: str
    unit: str
    value: str
    facts: str
    tiles: list[str]
    captions: list[str]
    whole: str
    prompted: bool
    narrow: int


def embedded(strip: Strip, facts: DataSpec, budget: int) -> Embedded:
    """A row with its pictures; the whole grid has at most `budget` bytes, if that is possible."""
    tiles, labels = [], []
    if not facts.is_points:
        found = cells(strip.file, facts)
        places = chosen(len(found), facts.classes)
        tiles, labels = [_uri(found[place]) for place in places], captions(places, facts, strip.prompts)
    whole = data_uri(strip.file, budget)
    narrow = columns(len(tiles), NARROW)
    return Embedded(strip.title, strip.index, strip.score, strip.unit, strip.value, strip.facts, tiles, labels, whole,
                    bool(strip.prompts), narrow)  # fmt: skip


def score(fd: Mapping[str, Any], name: str = "fd") -> tuple[str, str, str]:
    """Score, unit and value of a run: its fd as a multiple of that of real data, or fd itself if the floor is 0."""
    value = number(fd["value"])
    return (f"{fd['value'] / fd['floor']:.1f} ×", "floor", f"{name} {value}") if fd["floor"] else (value, name, "")


def joined(facts: Sequence[str]) -> str:
    """Facts in one line, which is broken between them only."""
    return " ".join("\u00a0".join([*fact.split(), "·"]) for fact in facts[:-1]) + " " + "\u00a0".join(facts[-1].split())


def is_smooth(facts: DataSpec) -> bool:
    """Whether enlarged pictures are smoothed, as photographs are; the pixels of small ones are shown as they are."""
    return max(facts.shape[1:]) >= SMOOTH


def cells(file: Path, facts: DataSpec) -> list[Image.Image]:
    """The pictures of a grid that `preview.render` drew with 8 columns, row by row; of points the whole picture."""
    sheet = Image.open(file)
    sheet.load()
    if facts.is_points:
        return [sheet]
    _, height, width = facts.shape
    scale = max(1, CELL // max(height, width))
    high, wide = height * scale, width * scale
    boxes = [
        (left, top, left + wide, top + high)
        for top in range(GAP, sheet.height - high, high + GAP)
        for left in range(GAP, sheet.width - wide, wide + GAP)
    ]
    return [sheet.crop(box) for box in boxes]


def chosen(cells: int, classes: int, count: int = TILES) -> list[int]:
    """The places of a grid that a row shows: of labelled data as many of each class, else the first ones.

    Args:
        cells: pictures in the grid, one class per line of 8 if the data has classes.
        classes: number of classes of the data; 0 without labels.
        count: pictures in the row, at most.
    """
    if not classes:
        return list(range(min(count, cells)))
    lines = max(1, cells // COLUMNS)
    each = min(COLUMNS, max(1, count // lines))
    places = [line * COLUMNS + column for line in range(min(lines, count)) for column in range(each)]
    return [place for place in places if place < cells]


def captions(places: Sequence[int], facts: DataSpec, prompts: Sequence[str] = ()) -> list[str]:
    """The class or the prompt of each place of a grid; empty if it has none.

    Args:
        places: from `chosen`.
        facts: the dataset's specification.
        prompts: the prompts of the grid, for a run of captions.
    """
    if prompts:
        return [prompts[place] if place < len(prompts) else "" for place in places]
    lines = classes(facts)
    return [lines[place // COLUMNS] if place // COLUMNS < len(lines) else "" for place in places]


def classes(facts: DataSpec) -> list[str]:
    """The class of each line of a grid; none without labels."""
    if facts.is_points or not facts.classes:
        return []
    return [facts.class_names[label] for label in shown_classes(facts, min(facts.classes, CLASSES))]


def _uri(tile: Image.Image) -> str:
    """A picture as a data URI: PNG if it is small, else WebP."""
    data, kind = io.BytesIO(), "png"
    if max(tile.size) > CELL + CELL // 2:
        kind = "webp"
        tile = tile.convert("RGB")
        tile.thumbnail((TILE_PIXELS, TILE_PIXELS))
        tile.save(data, "WEBP", quality=85)
    else:
        tile.save(data, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
