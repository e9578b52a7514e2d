"""Reading a dataset's shards: memory-mapped rows, as batches for training or whole columns.

`shard_format.py` describes and writes the files, and `values.py` turns their records into numbers for nets.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from genflow.data import encoding
from genflow.data.ahead import to_device
from genflow.data.shard_format import FACTS
from genflow.data.values import record_format, to_x
from genflow.errors import DataError
from genflow.specs import DataSpec
from genflow.storage.store import Artifact

if TYPE_CHECKING:
    import torch

    from genflow.batch import Batch

MAX_MAPPED = 512  # shards of a split that stay mapped; each keeps a file open
HASHED_AT_OPEN = 2**30  # bytes of a dataset's shards that are hashed before they are used; else each at its first use


class Shards(Sequence[pa.Table]):
    """A split's shards, memory-mapped on first use; the `MAX_MAPPED` last used ones stay open.

    Args:
        files: the files of the shards.
        rows: rows of each shard; None: read them from the files.
        verify: called with a file before it is mapped; raises `DataError` if it is damaged.
    """

    def __init__(
        self, files: Sequence[Path], rows: Sequence[int] | None = None, verify: Callable[[Path], object] | None = None
    ) -> None:
        self._files, self._verify = files, verify

        def read(file: Path) -> pa.Table:
            if verify:
                verify(file)
            return map_stream(file)

        self._map = lru_cache(MAX_MAPPED)(read)
        self.rows = [read(file).num_rows for file in files] if rows is None else list(rows)

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, number: int) -> pa.Table: ...
    @overload
    def __getitem__(self, number: slice) -> "Shards": ...
    def __getitem__(self, number: int | slice) -> "pa.Table | Shards":
        if isinstance(number, slice):
            return Shards(self._files[number], self.rows[number], self._verify)
        return self._map(self._files[number])


@dataclass(frozen=True)
class Split:
    """One split's rows, memory-mapped.

    Args:
        name: "train", "val" or "test".
        tables: one Arrow table per shard.
        facts: the dataset's specification.
    """

    name: str
    tables: Sequence[pa.Table]
    facts: DataSpec

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def _view(self) -> Callable[[int], np.ndarray]:
        """A function that returns a shard's records as a view of the file."""
        shape, dtype = record_format(self.facts)

        def view(number: int) -> np.ndarray:
            column = self.tables[number].column(0)  # `combine_chunks` would copy even a single chunk into memory
            values = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
            flat = values.flatten().to_numpy(zero_copy_only=False)
            return flat.astype(dtype, copy=False).reshape(-1, *shape)

        return lru_cache(MAX_MAPPED)(view)

    @cached_property
    def _strip(self) -> Callable[[int], np.ndarray]:
        """A function that returns a shard's strips as a view of the file."""
        C, _, W = self.facts.shape

        def view(number: int) -> np.ndarray:
            values = self.tables[number].column("strip").chunk(0).flatten().to_numpy()
            return values.reshape(-1, self.facts.strip, W, C)

        return lru_cache(MAX_MAPPED)(view)

    @cached_property
    def _extent(self) -> Callable[[int], np.ndarray]:
        """A function that returns the extents of a shard's strips."""
        return lru_cache(MAX_MAPPED)(lambda number: self.tables[number].column("extent").to_numpy())

    @cached_property
    def _label(self) -> Callable[[int], np.ndarray]:
        """A function that returns a shard's labels."""
        return lru_cache(MAX_MAPPED)(lambda number: self.tables[number].column("label").to_numpy())

    @cached_property
    def pixels(self) -> np.ndarray:
        """(N, H, W, C), of the type that `record_format` describes; a view if there is one shard and no encoding."""
        if self.facts.is_encoded:
            return self.take(np.arange(len(self)))
        if not self.tables:
            shape, dtype = record_format(self.facts)
            return np.zeros((0, *shape), dtype)
        views = [self._view(number) for number in range(len(self.tables))]
        return views[0] if len(views) == 1 else np.concatenate(views)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, for small data; see `labels_of`."""
        if not self.facts.classes:
            return np.zeros(len(self), np.int64)
        return np.concatenate([table.column("label").to_numpy() for table in self.tables] or [np.zeros(0, np.int64)])

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        """The labels of `rows` (B,), int64; all 0, which equals `classes` and means "no label", without classes."""
        if not self.facts.classes or not len(rows):
            return np.zeros(len(rows), np.int64)
        return self._gather(np.asarray(rows), self._label)

    def label_counts(self) -> np.ndarray:
        """(classes,) how many rows each class has; reads one shard at a time."""
        counts = np.zeros(self.facts.classes, np.int64)
        for table in self.tables:
            counts += np.bincount(table.column("label").to_numpy(), minlength=self.facts.classes)
        return counts

    @cached_property
    def ids(self) -> list[str]:
        """(N,) the origin of each record."""
        return [id for table in self.tables for id in table.column("id").to_pylist()]

    @cached_property
    def captions(self) -> list[tuple[str, ...]]:
        """(N,) the captions of each record; none for data without captions."""
        if not self.facts.captions:
            return [()] * len(self)
        return [tuple(texts) for table in self.tables for texts in table.column("captions").to_pylist()]

    @cached_property
    def log_density(self) -> np.ndarray | None:
        """(N,) the true log-density of points, in nats; None for pictures and latents."""
        if not self.facts.is_points:
            return None
        return np.concatenate([table.column("log_density").to_numpy() for table in self.tables])

    @property
    def sizes(self) -> list[int]:
        """The number of rows of each shard."""
        return self.tables.rows if isinstance(self.tables, Shards) else [table.num_rows for table in self.tables]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *self.sizes])

    def batch(self, rows: np.ndarray, device: "torch.device", records: np.ndarray | None = None) -> "Batch":
        """The records of `rows` as a batch for a family; `records` replaces them, with the labels of `rows`."""
        from genflow.batch import Batch

        values = to_device(self.take(rows) if records is None else records, device)
        return Batch(to_x(values, self.facts), to_device(self.labels_of(rows), device))

    def column(self, name: str, rows: np.ndarray) -> list[Any]:
        """The values of a column of texts or files in `rows`, in that order."""
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        places = zip(shard.tolist(), (rows - self._starts[shard]).tolist(), strict=True)
        return [self.tables[number].column(name)[row].as_py() for number, row in places]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The records of `rows`, in that order: (B, H, W, C)."""
        if self.facts.is_encoded:
            return encoding.decode(self.column("image", np.asarray(rows)), record_format(self.facts)[0])
        return self._gather(rows, self._view)

    def strips(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The strips (B, length, W, C) of `rows` and their extents (B,), for data with random crops."""
        extents = self._gather(rows, self._extent)
        if self.facts.is_encoded:
            C, _, W = self.facts.shape
            return encoding.decode(self.column("strip", rows), (self.facts.strip, W, C)), extents
        return self._gather(rows, self._strip), extents

    def _gather(self, rows: np.ndarray, read: Callable[[int], np.ndarray]) -> np.ndarray:
        """The values of `rows`, in their order; reads only the shards that contain them."""
        if len(self.tables) == 1:
            return read(0)[rows]
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        out: np.ndarray | None = None
        for number in np.unique(shard):
            mask, values = shard == number, read(int(number))
            out = np.empty((len(rows), *values.shape[1:]), values.dtype) if out is None else out
            out[mask] = values[rows[mask] - self._starts[number]]
        if out is None:  # no rows
            return read(0)[:0] if len(self.tables) else self.pixels
        return out


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset: its specification and its splits."""

    artifact: Artifact
    facts: DataSpec
    splits: dict[str, Split]

    @classmethod
    def open(cls, artifact: Artifact, *, verify: bool = True) -> "Dataset":
        """Memory-map a dataset.

        Args:
            artifact: the dataset, or latents of one.
            verify: whether to compare its files with their hashes: all of them now, or the shards of large data by
                their sizes now, and each by its hash when it is first read. In a bucket, each is downloaded then.

        Raises:
            DataError: a file is missing or corrupt.
        """
        shards = [name for name in artifact.manifest["files"] if name.endswith(".arrow")]
        late = verify and sum(artifact.manifest["files"][name]["size"] for name in shards) > HASHED_AT_OPEN
        if verify:
            artifact.verify(sizes=shards if late else ())
        folder = artifact.here if late else artifact.path
        facts = DataSpec.from_json(artifact.file(FACTS).read_text(encoding="utf-8"))
        splits = {}
        for split in facts.splits:
            state = json.loads(artifact.file(f"{split}/state.json").read_text(encoding="utf-8"))
            listed = state["_data_files"]
            files = [folder / split / entry["filename"] for entry in listed]
            rows = [entry["rows"] for entry in listed] if all("rows" in entry for entry in listed) else None
            check = (lambda file: artifact.file(file.relative_to(folder).as_posix())) if late else None
            splits[split] = Split(split, Shards(files, rows, check), facts)
        return cls(artifact, facts, splits)

    @property
    def reference(self) -> str:
        """The split that models are measured against: test, else val, else train."""
        return next(name for name in ("test", "val", "train") if self.facts.splits.get(name))


def map_stream(path: Path) -> pa.Table:
    """Memory-map a shard.

    Raises:
        DataError: the file is missing or not an Arrow stream.
    """
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is not a readable Arrow stream: {error}", "prepare the dataset again") from error
