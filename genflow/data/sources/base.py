"""The interface of data sources: `Source`, its parts that are sent to workers, and the records that they yield.

A `Source` lists its contents without decoding them. `source.part(split, rows)` is a small value that any worker can
turn into records; an unreadable record becomes a `BadRecord` with the reason.
"""

import math
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from genflow.data.columns import CAPTION_CHOICES
from genflow.errors import DataError
from genflow.recipe.schema import Data

LONGEST = 1024  # pixels: the largest side that a recipe can request

class Record(NamedTuple):
    """One row of a dataset.

    Args:
        id: its origin in the source, as valid UTF-8.
        value: (side, side, C) uint8 grey levels, or (2,) float32, a point.
        label: the number of the class; 0 for data without classes.
        log_density: the true log-density at a point, in nats.
        captions: the texts that describe the picture; empty if there are none.
    """

    id: str
    value: np.ndarray
    label: int = 0
    log_density: float = 0.0
    captions: tuple[str, ...] = ()


class BadRecord(NamedTuple):
    """An unreadable record, and the reason."""

    id: str
    reason: str


@dataclass(frozen=True)
class ImageSpec:
    """The shape and range to which every picture of a dataset is converted.

    Args:
        side: height and width in pixels.
        channels: 1 or 3.
        levels: K; grey levels are 0..K-1.
        low, high: the range of the source's values, if they are not bytes.
        bits: the bits of values above 255.
        crop: what becomes of a picture that is not square: "center" and "none" give a square; "random" gives a picture
            whose short side is `side`, for a crop at training time.
    """

    side: int
    channels: int
    levels: int = 256
    low: float = math.inf
    high: float = -math.inf
    bits: int = 16
    crop: str = "center"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W), the order of `DataSpec`."""
        return self.channels, self.side, self.side


@dataclass(frozen=True)
class ImageSummary:
    """Properties of some pictures that are known without decoding them; summaries can be added.

    Args:
        size: (width, height) if all pictures have the same size.
        mixed: whether sizes differ.
        colour: whether any picture is in colour by its mode and palette; pixels are not read.
        low, high: the range of the values, if they are not bytes.
        deep: whether any grey picture stores 16 bits per pixel.
        shapes: the number of pictures by short side (at most 1024) and by short side in percent of the long side.
    """

    size: tuple[int, int] | None = None
    mixed: bool = False
    colour: bool = False
    low: float = math.inf
    high: float = -math.inf
    deep: bool = False
    shapes: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def __add__(self, other: "ImageSummary") -> "ImageSummary":
        return self.merge((self, other))

    @classmethod
    def merge(cls, summaries: Iterable["ImageSummary"]) -> "ImageSummary":
        """The sum of some summaries."""
        sizes: set[tuple[int, int]] = set()
        shapes: Counter[tuple[int, int]] = Counter()
        mixed, colour, deep, low, high = False, False, False, math.inf, -math.inf
        for one in summaries:
            sizes |= {one.size} if one.size else set()
            shapes.update(one.shapes)
            mixed, colour, deep = mixed or one.mixed, colour or one.colour, deep or one.deep
            low, high = min(low, one.low), max(high, one.high)
        mixed = mixed or len(sizes) > 1
        return cls(None if mixed or not sizes else sizes.pop(), mixed, colour, low, high, deep, dict(shapes))

    @classmethod
    def of_size(
        cls, width: int, height: int, colour: bool, deep: bool = False, pictures: int = 1, **values: float
    ) -> "ImageSummary":
        """The summary of pictures of one size.

        Args:
            width, height: in pixels.
            colour, deep: as in the class.
            pictures: their number.
            values: `low` and `high`, as in the class.
        """
        short, long = sorted((width, height))
        shape = min(short, LONGEST), round(100 * short / long) if long else 100
        return cls((width, height), False, colour, deep=deep, shapes={shape: pictures}, **values)


def printable(path: str) -> str:
    """A file's name as valid UTF-8: other bytes become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def dataset_name(name: str) -> str:
    """Derive a dataset's name from a file's name: letters, digits, `.`, `_` and `-`, at most 60 characters."""
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", printable(name)).strip("-._")
    return text[:60].rstrip("-._") or "data"


def require_in_train(where: str, labels: Mapping[str, Collection[Any]]) -> None:
    """Refuse a class that occurs in another split and not in train: a model cannot learn it.

    Args:
        where: the source.
        labels: the labels that occur in each split.

    Raises:
        DataError: it names the split and the class.
    """
    known = set(labels.get("train", ()))
    for split, found in labels.items():
        if extra := [label for label in found if label not in known]:
            shown = printable(extra[0]) if isinstance(extra[0], str) else extra[0]
            raise DataError(
                f"{where}: {split} has the class {shown}, which is not in train",
                "use the same classes in all splits, or --labels none",
            )


class Part(Protocol):
    """Some rows of a source, as a value that is pickled and sent to a worker."""

    def __len__(self) -> int: ...

    def summarize(self) -> ImageSummary:
        """Summarize the pictures without decoding them."""
        ...

    def records(self, spec: ImageSpec) -> Iterator[Record | BadRecord]:
        """Decode every row, in order."""
        ...


@dataclass
class Source(ABC):
    """The origin of a dataset.

    Args:
        name: the default name of the dataset.
        skipped: the number of skipped files by reason.
        notes: one-line warnings for the user.
    """

    name: str
    skipped: dict[str, int] = field(default_factory=dict, kw_only=True)
    notes: list[str] = field(default_factory=list, kw_only=True)

    smallest_shard = 4096  # rows; smaller for sources that decode slowly, so that there is a shard for every worker

    @property
    def levels(self) -> int | None:
        """K, the number of grey levels; None for points of the plane."""
        return 256

    @property
    def scale(self) -> float:
        """The divisor of points of the plane that gives both coordinates together variance 1."""
        return 1.0

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]:
        """The source's kind and path, for the manifest."""

    @abstractmethod
    def listing(self) -> list[list[Any]]:
        """Names, sizes and modification times of the files, which identify the content without reading it."""

    label_choices: ClassVar[tuple[str, ...]] = ("auto", "none")  # values of `data.labels`
    caption_choices: ClassVar[tuple[str, ...]] = CAPTION_CHOICES  # values of `data.captions`
    has_columns: ClassVar[bool] = False  # whether another value of either names a column

    @property
    def captions(self) -> bool:
        """Whether the pictures have captions."""
        return False

    @abstractmethod
    def splits(self) -> dict[str, int]:
        """The number of rows of each split, always with `train` first."""

    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The class names, in the order of the labels; empty without labels."""

    @abstractmethod
    def summarize(self, options: Data) -> ImageSummary | None:
        """The summary of all pictures, if it is known without opening each file; None: summarize every part."""

    @abstractmethod
    def part(self, split: str, rows: np.ndarray) -> Part:
        """Some rows of a split, in ascending order."""
