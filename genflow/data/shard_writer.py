"""Decode and write the shards of a dataset, and compute the dataset's specification from their counts."""

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from genflow.data.encoding import is_lossy
from genflow.data.image_statistics import ImageStatistics, measure
from genflow.data.shard_format import shard_name, write_shard
from genflow.data.shards import Split, map_stream
from genflow.data.sources.base import BadRecord, ImageSpec, Part
from genflow.data.strips import center_square, to_strip
from genflow.errors import DataError
from genflow.specs import DataSpec
from genflow.storage.files import explain_disk_errors


@dataclass(frozen=True)
class ShardResult:
    """The contents of a written shard.

    Args:
        split, number: identify the shard.
        rows: records in the file; a shard without records has no file.
        sha256: hash of the file.
        bad: unreadable records, which are left out.
        histogram: (256,) count of each grey level; empty for points.
        moments: sum and sum of squares of the points' coordinates.
        class_counts: (classes,) records per class.
        file: the name of the file.
        captions: records that have captions.
        origin: (rows,) the number of each record in the source's split.
        statistics: numbers about each picture.
        lost: the sum of the squared changes of all pixels by a lossy encoding.
    """

    split: str
    number: int
    rows: int
    sha256: str
    bad: list[BadRecord]
    histogram: np.ndarray
    moments: tuple[float, float]
    class_counts: np.ndarray
    file: str
    captions: int
    origin: np.ndarray
    statistics: ImageStatistics
    lost: float = 0.0


@dataclass(frozen=True)
class ShardTask:
    """One shard to write.

    Args:
        folder: the split's folder.
        split, number, total: the split, the number of the shard and the number of shards.
        origin: the numbers of its rows in the source's split.
        part: these rows of the source.
        spec: the specification of the images.
        facts: the dataset's specification, without counts.
    """

    folder: str
    split: str
    number: int
    total: int
    origin: np.ndarray
    part: Part
    spec: ImageSpec
    facts: DataSpec

    @property
    def file(self) -> str:
        """The name of the file."""
        return shard_name(self.number, self.total)

    def write(self) -> ShardResult:
        """Decode the records and write the file atomically."""
        C, H, W = self.facts.shape
        shape, dtype = ((2,), np.float32) if self.facts.is_points else ((H, W, C), np.uint8)
        values = np.empty((len(self.part), *shape), dtype)
        rows = len(self.part) if self.facts.strip else 0
        strips, extents = np.empty((rows, self.facts.strip, W, C), np.uint8), np.empty(rows, np.int32)
        ids: list[str] = []
        labels: list[int] = []
        log_density: list[float] = []
        captions: list[tuple[str, ...]] = []
        bad: list[BadRecord] = []
        readable: list[int] = []
        for row, record in zip(self.origin, self.part.records(self.spec), strict=True):
            if isinstance(record, BadRecord):
                bad.append(record)
                continue
            readable.append(row)
            value = record.value
            if self.facts.strip:
                strip, extent = to_strip(value, self.facts.strip)
                strips[len(ids)], extents[len(ids)] = strip, extent
                value = center_square(value, self.facts.strip)
            values[len(ids)] = value
            ids.append(record.id)
            labels.append(record.label)
            log_density.append(record.log_density)
            captions.append(record.captions)
        values, label = values[: len(ids)], np.array(labels, np.int64)
        sha256, lost = "", 0.0
        if ids:
            final = Path(self.folder) / self.file
            attempt = final.with_name(f"{self.file}.tmp-{os.getpid()}")
            with explain_disk_errors(final):
                density, kept = np.array(log_density), (strips[: len(ids)], extents[: len(ids)])
                sha256 = write_shard(attempt, self.facts, values, ids, label, density, *kept, captions)
                os.replace(attempt, final)
            if is_lossy(self.facts.encoding):  # what is measured below is what will be read
                read = Split(self.split, (map_stream(final),), self.facts).pixels
                lost = sum(float(np.square(a.astype(np.int32) - b).sum()) for a, b in zip(values, read, strict=True))
                values = read
        exact = values.astype(np.float64) if self.facts.is_points else np.zeros(0)
        return ShardResult(
            self.split,
            self.number,
            len(ids),
            sha256,
            bad,
            np.zeros(0, np.int64) if self.facts.is_points else _histogram(values),
            (float(exact.sum()), float((exact**2).sum())),
            np.bincount(label, minlength=self.facts.classes),
            self.file,
            sum(map(bool, captions)),
            np.array(readable, np.int64),
            measure(values),
            lost,
        )


def _histogram(values: np.ndarray) -> np.ndarray:
    """Count each byte value, in pieces: `bincount` converts its input to eight bytes per value."""
    flat, piece = values.reshape(-1), 2**20
    counts = (np.bincount(flat[start : start + piece], minlength=256) for start in range(0, flat.size, piece))
    return sum(counts, np.zeros(256, np.int64))


@dataclass
class ShardResults:
    """The results of all shards, in order."""

    facts: DataSpec
    written: list[ShardResult] = field(default_factory=list)

    @property
    def bad(self) -> list[BadRecord]:
        """Every unreadable record."""
        return [bad for shard in self.written for bad in shard.bad]

    def files(self, planned: Iterable[ShardTask]) -> dict[str, dict[str, int]]:
        """For each split, the names of the files and their numbers of records; shards without records are left out."""
        rows = {(shard.split, shard.number): shard.rows for shard in self.written}
        names: dict[str, dict[str, int]] = {}
        for shard in planned:
            if count := rows[shard.split, shard.number]:
                names.setdefault(shard.split, {})[shard.file] = count
        return names

    def dataset_spec(self, where: str) -> DataSpec:
        """The complete specification of the dataset.

        Raises:
            DataError: no training record is left, or all pixels have one value.
        """
        train = [shard for shard in self.written if shard.split == "train"]
        count = sum(shard.rows for shard in train)
        if not count:
            raise DataError(f"no picture of the training split in {where} can be read")
        if self.facts.is_points:
            mean, sigma = _moments(train, 2 * count, self.facts.scale)
        else:
            mean, sigma = _bin_centres(sum(shard.histogram for shard in train), self.facts.levels or 256)
        if not sigma:
            raise DataError(f"all pixels of {where} have one value, so a model has nothing to learn")
        splits: dict[str, int] = {}
        for shard in self.written:
            splits[shard.split] = splits.get(shard.split, 0) + shard.rows
        classes = np.sum([shard.class_counts for shard in train], 0) if self.facts.classes else []
        return replace(
            self.facts,
            splits={split: rows for split, rows in splits.items() if rows},
            mean=mean,
            sigma_data=sigma,
            class_counts=tuple(int(rows) for rows in classes),
            fingerprint=hashlib.sha256("".join(shard.sha256 for shard in self.written).encode()).hexdigest(),
        )


def _bin_centres(histogram: Any, levels: int) -> tuple[float, float]:
    """Mean and standard deviation of x = (2k + 1)/K - 1, from exact counts."""
    counts = [int(count) for count in histogram]
    total = sum(counts)
    first = sum(k * count for k, count in enumerate(counts))
    second = sum(k * k * count for k, count in enumerate(counts))
    variance = (total * second - first * first) / total**2
    return (2 * first / total + 1) / levels - 1, 2 * math.sqrt(variance) / levels


def _moments(train: list[ShardResult], count: int, scale: float) -> tuple[float, float]:
    """Mean and standard deviation of x = point / scale."""
    mean = math.fsum(shard.moments[0] for shard in train) / count
    square = math.fsum(shard.moments[1] for shard in train) / count
    return mean / scale, math.sqrt(max(0.0, square - mean**2)) / scale
