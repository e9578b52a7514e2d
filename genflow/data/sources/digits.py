"""Scikit-learn's digits, which are always available."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from genflow.data.images import fit_array
from genflow.data.sources import Opens
from genflow.data.sources.base import BadRecord, ImageSpec, ImageSummary, Record, Source
from genflow.recipe.schema import Data

OPENS = Opens(names=("digits",), order=1)


def open_name(name: str, data: Data) -> Source:
    """The digits."""
    return Digits()


@dataclass
class Digits(Source):
    """Scikit-learn's 1,797 handwritten digits: 8 x 8 pixels, grey levels k = 0..16, ten classes."""

    name: str = field(default="digits", init=False)

    @property
    def levels(self) -> int:
        return 17

    @property
    def about(self) -> dict[str, Any]:
        return {"kind": "digits", "path": "sklearn.datasets.load_digits"}

    def listing(self) -> list[list[Any]]:
        return [["digits", 1797, 0]]

    def splits(self) -> dict[str, int]:
        return {"train": 1797}

    def class_names(self) -> tuple[str, ...]:
        return tuple("0123456789")

    def summarize(self, options: Data) -> ImageSummary:
        return ImageSummary(size=(8, 8))

    def part(self, split: str, rows: np.ndarray) -> "DigitsPart":
        images, labels = self._data
        return DigitsPart(images[rows], labels[rows], rows)

    @cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits  # not at the top: it takes 0.5 s, also for a finished dataset

        images, labels = load_digits(return_X_y=True)
        return images.reshape(-1, 8, 8).astype(np.uint8), labels.astype(np.int64)


@dataclass(frozen=True)
class DigitsPart:
    """Some of the digits."""

    images: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def summarize(self) -> ImageSummary:
        return ImageSummary(size=(8, 8))

    def records(self, spec: ImageSpec) -> Iterator[Record | BadRecord]:
        for image, label, number in zip(self.images, self.labels, self.numbers, strict=True):
            yield Record(f"digits/{number}", fit_array(image, spec), int(label))
