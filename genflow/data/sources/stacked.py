"""Stacks: three pictures of a labelled source become the three channels of one picture; k classes give k^3 modes.

`stack:digits` has 1,000 modes, and `stack:/pictures` the cube of that folder's number of classes. A stack has no label,
so a model does not receive the mode. The record's id contains it, such as `4.3.7/12`, for the metric that counts modes.
Held-out stacks consist of held-out pictures.

References:
    Unrolled generative adversarial networks (Metz et al., 2017), section 3.3.1    https://arxiv.org/abs/1611.02163
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from genflow.data.sources import Opens
from genflow.data.sources.base import BadRecord, ImageSpec, ImageSummary, Part, Record, Source
from genflow.data.sources.find import find
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import Data

OPENS = Opens(prefix="stack:", order=4)
PREFIX = OPENS.prefix
CHANNELS = 3
BLOCK = 1024  # stacks per random generator
HELD_OUT_STREAM = 2  # names the permutation's random generator, in addition to the seed


def open_name(name: str, data: Data) -> Source:
    """Open the source that is named after the prefix, and stack its pictures.

    Raises:
        UsageError: one channel is requested.
        GenflowError: an error of the other source.
    """
    if data.channels == 1:
        raise UsageError("a stack has three channels", "omit --channels")
    if data.crop == "random":
        raise UsageError("random crops do not apply to a stack", "omit --crop")
    base = find(data.model_copy(update={"source": name.removeprefix(PREFIX)}))
    return Stack(base, data.samples, data.val, data.seed)


@dataclass
class Stack(Source):
    """Stacks of a source's pictures, drawn at random.

    Args:
        base: the source of the pictures.
        samples: the number of stacks.
        held_out: the held-out fraction of the stacks, and of the pictures if `base` has no test or val split.
        seed: the seed of the random generators.
    """

    name: str = field(init=False)
    base: Source
    samples: int
    held_out: float
    seed: int
    has_columns = True  # those of `base`, which has judged the option

    def __post_init__(self) -> None:
        if self.base.levels is None:
            raise UsageError(f"{self.base.name} contains points of the plane, but a stack needs pictures")
        self.name = f"stacked-{self.base.name}"
        self.skipped, self.notes = self.base.skipped, self.base.notes

    @property
    def levels(self) -> int | None:
        return self.base.levels

    @property
    def about(self) -> dict[str, Any]:
        path, classes = f"{PREFIX}{self.base.about['path']}", len(self.base.class_names())
        return {"kind": "stack", "path": path, "classes": classes, "pictures": len(self._pools["train"][1])}

    def listing(self) -> list[list[Any]]:
        return [["stack", self.samples, self.seed], *self.base.listing()]

    def splits(self) -> dict[str, int]:
        held = int(self.samples * self.held_out)
        return {"train": self.samples - held, **({"val": held} if held else {})}

    def class_names(self) -> tuple[str, ...]:
        if len(self.base.class_names()) < 2:
            message = f"{self.base.about['path']} has no labels, so its stacks would have no modes"
            raise DataError(message, "use a source with at least two classes")
        return ()

    def summarize(self, options: Data) -> ImageSummary | None:
        found = self.base.summarize(options)
        return None if found is None else replace(found, colour=True)

    def part(self, split: str, rows: np.ndarray) -> "StackPart":
        """Some stacks: the random generator of (seed, split, b) draws block b of 1,024 stacks."""
        origin, pool = self._pools[split]
        chosen = np.empty((len(rows), CHANNELS), np.int64)
        for block in np.unique(rows // BLOCK):
            rng = np.random.default_rng([self.seed, int(split != "train"), int(block)])
            drawn = rng.integers(0, len(pool), (BLOCK, CHANNELS))
            in_block = rows // BLOCK == block
            chosen[in_block] = pool[drawn[rows[in_block] % BLOCK]]
        needed, index = np.unique(chosen, return_inverse=True)
        return StackPart(self.base.part(origin, needed), index.reshape(chosen.shape), rows)

    @cached_property
    def _pools(self) -> dict[str, tuple[str, np.ndarray]]:
        """The rows that each split is drawn from: a split of `base`, and row numbers in ascending order."""
        own = self.base.splits()
        rows = np.arange(own["train"])
        if other := next((name for name in ("test", "val") if own.get(name)), None):
            return {"train": ("train", rows), "val": (other, np.arange(own[other]))}
        order = np.random.default_rng([self.seed, HELD_OUT_STREAM]).permutation(len(rows))
        held = int(self.held_out * len(rows))
        return {"train": ("train", np.sort(order[held:])), "val": ("train", np.sort(order[:held]))}


@dataclass(frozen=True)
class StackPart:
    """Some stacks.

    Args:
        base: the pictures.
        index: (N, 3) the index in `base` of each channel's picture.
        rows: (N,) the numbers of the stacks.
    """

    base: Part
    index: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def summarize(self) -> ImageSummary:
        return replace(self.base.summarize(), colour=True)

    def records(self, spec: ImageSpec) -> Iterator[Record | BadRecord]:
        if spec.channels != CHANNELS:
            raise UsageError("a stack has three channels", "omit --channels")
        pictures = list(self.base.records(replace(spec, channels=1)))
        for row, indices in zip(self.rows, self.index, strict=True):
            chosen = [pictures[index] for index in indices]
            if bad := next((record for record in chosen if isinstance(record, BadRecord)), None):
                yield BadRecord(f"{bad.id} in stack {row}", bad.reason)
                continue
            mode = ".".join(str(record.label) for record in chosen)
            yield Record(f"{mode}/{row}", np.concatenate([record.value for record in chosen], 2))


def modes(ids: list[str]) -> np.ndarray:
    """The class of each channel of each stack, (N, 3), from the records' ids."""
    return np.array([[int(label) for label in id.partition("/")[0].split(".")] for id in ids], np.int64)
