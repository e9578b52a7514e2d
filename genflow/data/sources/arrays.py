"""Sources that store pictures and labels as arrays in files; `idx.py` and `npz.py` find the arrays.

Arrays are read as streams, 512 rows at a time, so a file may be larger than the memory.
"""

import gzip
import math
import struct
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from genflow.data.images import MAX_PIXELS, UnreadableImage, fit_array, to_levels
from genflow.data.sources.base import BadRecord, ImageSpec, ImageSummary, Record, Source, require_in_train
from genflow.errors import DataError
from genflow.recipe.schema import Data

ROWS_PER_READ = 512  # rows in memory at a time
BYTES_PER_READ = 2**26  # and their bytes; one row may have more
READ_ERRORS = (OSError, EOFError, zlib.error, zipfile.BadZipFile, ValueError, struct.error, NotImplementedError)


@dataclass(frozen=True)
class Array:
    """An array in a file, read row by row.

    Args:
        path: the file.
        member: the array's name in an `.npz`; "" for an idx file.
        start: offset of the data in bytes.
        shape: (N, ...).
        dtype: the NumPy dtype string.
        planar: whether a row is (C, H, W) instead of (H, W) or (H, W, C).
    """

    path: str
    member: str
    start: int
    shape: tuple[int, ...]
    dtype: str
    planar: bool = False

    def open(self) -> IO[bytes]:
        """Open the file at its beginning, decompressed while it is read."""
        if self.member:
            return zipfile.ZipFile(self.path).open(self.member)
        return gzip.open(self.path) if self.gzipped else open(self.path, "rb")  # type: ignore[return-value]

    @property
    def gzipped(self) -> bool:
        """Whether the file is compressed as a whole."""
        return self.path.lower().endswith(".gz")

    @property
    def bytes(self) -> int:
        """The bytes from the beginning of the file, or of the member, to the end of the array."""
        return self.start + math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def rows(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the rows with the given numbers, each with its number.

        Args:
            wanted: row numbers in ascending order.

        Raises:
            DataError: the file is truncated or damaged.
        """
        item = np.dtype(self.dtype)
        size = item.itemsize * math.prod(self.shape[1:])
        step = max(1, min(ROWS_PER_READ, BYTES_PER_READ // max(1, size)))
        try:
            with self.open() as file:
                for first in range(int(wanted[0]), int(wanted[-1]) + 1, step):
                    last = min(first + step, int(wanted[-1]) + 1)
                    in_chunk = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, last)]
                    if not len(in_chunk):
                        continue
                    file.seek(self.start + first * size)
                    data = file.read((last - first) * size)
                    if len(data) < (last - first) * size:
                        raise EOFError
                    block = np.frombuffer(data, item).reshape(-1, *self.shape[1:])
                    for row in in_chunk:
                        picture = block[row - first]
                        yield int(row), np.moveaxis(picture, 0, -1) if self.planar else picture
                if wanted[-1] == self.shape[0] - 1:
                    file.read(1)  # gzip and zip verify their checksums at the end of the file
        except EOFError as error:
            message = f"{self.path} is truncated: it ends before the last of its {self.shape[0]} rows"
            raise DataError(message, "copy or download the file again") from error
        except READ_ERRORS as error:
            raise DataError(f"{self.path} is damaged: {error}", "copy or download the file again") from error

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one row."""
        if len(self.shape) == 3:
            return self.shape[1], self.shape[2], 1
        _, a, b, c = self.shape
        return (b, c, a) if self.planar else (a, b, c)


def check_size(name: str, shape: tuple[int, ...], needed: int, most: int, stored: int) -> None:
    """Compare an array's size, as its header declares it, with its file, before any memory is allocated.

    Args:
        name: the file, and the array in it.
        shape: the declared shape.
        needed: the bytes of the array and its header.
        most: the bytes that the file can contain after decompression.
        stored: the bytes of the file.

    Raises:
        DataError: the file cannot contain the array, or one picture has too many pixels.
    """
    if needed > most:
        raise DataError(
            f"{name} is truncated or damaged: its shape {shape} needs {needed:,} bytes, and the file has {stored:,}",
            "copy or download the file again",
        )
    if len(shape) > 2 and math.prod(shape[1:]) > 4 * MAX_PIXELS:
        size = f"{math.prod(shape[1:]):,} values per picture"
        message = f"{name} has the shape {shape}: {size}; the limit is {4 * MAX_PIXELS:,}"
        raise DataError(message, "use smaller pictures")


@dataclass(frozen=True)
class ArrayPart:
    """Some rows of an array."""

    array: Array
    numbers: np.ndarray
    labels: np.ndarray | None
    prefix: str

    def __len__(self) -> int:
        return len(self.numbers)

    def summarize(self) -> ImageSummary:
        low, high = math.inf, -math.inf
        for _, picture in self.array.rows(self.numbers):
            finite = picture[np.isfinite(picture)]
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        return summary_of_shape(self.array, len(self.numbers), low, high)

    def records(self, spec: ImageSpec) -> Iterator[Record | BadRecord]:
        labels = np.zeros(len(self.numbers), np.int64) if self.labels is None else self.labels
        rows = self.array.rows(self.numbers)
        for (row, picture), label in zip(rows, labels, strict=True):
            id = f"{self.prefix}/{row}"
            try:
                yield Record(id, fit_array(to_levels(picture, spec.low, spec.high, spec.bits), spec), int(label))
            except UnreadableImage as error:
                yield BadRecord(id, str(error))


def summary_of_shape(array: Array, rows: int, low: float = math.inf, high: float = -math.inf) -> ImageSummary:
    """Summarize some rows of an array by its shape, and by the range of their values."""
    height, width, channels = array.picture_shape
    return ImageSummary.of_size(width, height, channels > 2, high > 255, rows, low=low, high=high)


SplitArrays = dict[str, tuple[Array, np.ndarray | None]]


@dataclass
class Arrays(Source):
    """Arrays of pictures in files, one array per split, and their labels.

    Args:
        path: the absolute path of the source.
        files: the files of the source.
    """

    path: str
    files: list[str]
    kind = ""

    @abstractmethod
    def read(self) -> SplitArrays:
        """Each split's array, and its labels as stored in the files."""

    @property
    def about(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path}

    def listing(self) -> list[list[Any]]:
        facts = [(Path(file).name, Path(file).stat()) for file in self.files]
        return [[name, fact.st_size, fact.st_mtime_ns] for name, fact in facts]

    def splits(self) -> dict[str, int]:
        return {split: array.shape[0] for split, (array, _) in self._content[0].items()}

    def class_names(self) -> tuple[str, ...]:
        return self._content[1]

    def summarize(self, options: Data) -> ImageSummary | None:
        arrays = [array for array, _ in self._content[0].values()]
        if any(array.dtype != "|u1" for array in arrays):
            return None
        return ImageSummary.merge(summary_of_shape(array, array.shape[0]) for array in arrays)

    def part(self, split: str, rows: np.ndarray) -> ArrayPart:
        array, labels = self._content[0][split]
        return ArrayPart(array, rows, None if labels is None else labels[rows], split)

    @cached_property
    def _content(self) -> tuple[SplitArrays, tuple[str, ...]]:
        """Each split's array and labels, 0..classes-1, and the classes' names."""
        try:
            found = self.read()
        except READ_ERRORS as error:
            raise DataError(f"{self.path} is damaged: {error}", "copy or download the file again") from error
        return encode_labels(found, self.path)


def encode_labels(found: SplitArrays, where: str) -> tuple[SplitArrays, tuple[str, ...]]:
    """Encode labels of any type as numbers 0..classes-1, in sorted order.

    Args:
        found: each split's array and raw labels.
        where: the source, for error messages.

    Returns:
        Each split's array and encoded labels, and the class names.

    Raises:
        DataError: the number of labels is not the number of pictures, or only some splits have labels.
    """
    given = {split: labels for split, (_, labels) in found.items() if labels is not None}
    for split, labels in given.items():
        if len(labels) != found[split][0].shape[0]:
            pictures = found[split][0].shape[0]
            message = f"{where}: {pictures} pictures but {len(labels)} labels in {split}"
            raise DataError(message, "give every picture one label")
    if not given:
        return found, ()
    if missing := found.keys() - given.keys():
        message = f"{where}: no labels in {', '.join(sorted(missing))}, but in {', '.join(given)}"
        raise DataError(message, "add labels to every split, or remove them from all")
    values = np.unique(np.concatenate(list(given.values())))
    require_in_train(where, {split: np.unique(labels).tolist() for split, labels in given.items()})
    names = tuple(str(value) for value in values.tolist())
    if len(names) < 2:
        return {split: (array, None) for split, (array, _) in found.items()}, ()
    return {split: (array, np.searchsorted(values, given[split])) for split, (array, _) in found.items()}, names
