"""What sources give: records, the spec they are brought into, and the parts of a source that travel to workers.

A `Source` knows what it holds without decoding it. `source.part(split, rows)` is a small value that a worker
anywhere can turn into records; a record that cannot be read comes out as `BadRecord`, with the reason.
"""

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple, Protocol

import numpy as np

from genflow.recipe.schema import Data


class Record(NamedTuple):
    """One row of a dataset.

    Args:
        id: where it came from, as text that can always be written.
        value: (side, side, C) uint8 grey levels, or (2,) float32, a point.
        label: the class's number; 0 where there are no classes.
        log_density: the true log-density at a point, in nats.
    """

    id: str
    value: np.ndarray
    label: int = 0
    log_density: float = 0.0


class BadRecord(NamedTuple):
    """A record that cannot be read, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class ImageSpec:
    """What every picture of a dataset is brought into.

    Args:
        side: height and width in pixels.
        channels: 1 or 3.
        levels: K; grey levels are 0..K-1.
        low, high: the range of the source's numbers, where they are not bytes.
    """

    side: int
    channels: int
    levels: int = 256
    low: float = math.inf
    high: float = -math.inf

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W), as facts have it."""
        return self.channels, self.side, self.side


@dataclass(frozen=True)
class ImageSummary:
    """What can be said of some pictures before they are decoded; surveys add up.

    Args:
        size: (width, height) if all have the same.
        mixed: whether sizes differ.
        colour: whether any is in colour, judged by its mode (and its palette), not by its pixels.
        low, high: the range of the numbers, where they are not bytes.
    """

    size: tuple[int, int] | None = None
    mixed: bool = False
    colour: bool = False
    low: float = math.inf
    high: float = -math.inf

    def __add__(self, other: "ImageSummary") -> "ImageSummary":
        sizes = {size for size in (self.size, other.size) if size}
        mixed = self.mixed or other.mixed or len(sizes) > 1
        return ImageSummary(
            None if mixed or not sizes else sizes.pop(),
            mixed,
            self.colour or other.colour,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    @classmethod
    def merge(cls, summaries: Iterable["ImageSummary"]) -> "ImageSummary":
        """The survey of everything."""
        return reduce(ImageSummary.__add__, summaries, cls())


def printable(path: str) -> str:
    """A file's name as text that can always be written: bytes that are no UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def dataset_name(name: str) -> str:
    """A file's name as a dataset's name: letters, digits, `.`, `_` and `-`, at most 60."""
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", printable(name)).strip("-._")
    return text[:60].rstrip("-._") or "data"


class Part(Protocol):
    """Some rows of a source, as a value that a worker can read without the rest."""

    def __len__(self) -> int: ...

    def summarize(self) -> ImageSummary:
        """Look at the pictures without decoding them."""
        ...

    def records(self, spec: ImageSpec) -> Iterator[Record | BadRecord]:
        """Every row, in order."""
        ...


@dataclass
class Source(ABC):
    """Where a dataset comes from.

    Args:
        name: what the dataset is called if nobody says otherwise.
        skipped: what was passed over, and how often, by reason.
        notes: one-line remarks that a person should see.
    """

    name: str
    skipped: dict[str, int] = field(default_factory=dict, kw_only=True)
    notes: list[str] = field(default_factory=list, kw_only=True)

    smallest_shard = 4096  # rows; fewer where decoding is slow, so that every worker gets a share

    @property
    def levels(self) -> int | None:
        """K, the number of grey levels; None for points of the plane."""
        return 256

    @property
    def scale(self) -> float:
        """What points of the plane are divided by, so that both coordinates together have variance 1."""
        return 1.0

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What it is, for the manifest: its kind and path."""

    @abstractmethod
    def listing(self) -> list[list[Any]]:
        """What its content is known by without reading it: names, sizes and times of its files."""

    @abstractmethod
    def splits(self) -> dict[str, int]:
        """Rows of each split it has, always `train` first."""

    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The labels' names in order; empty where there are none."""

    @abstractmethod
    def summarize(self, options: Data) -> ImageSummary | None:
        """What can be known of all of it at no cost; None: every part has to be looked at."""

    @abstractmethod
    def part(self, split: str, rows: np.ndarray) -> Part:
        """Some rows of a split, in ascending order."""
