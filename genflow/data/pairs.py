"""Pairs of noise and the sample that a teacher draws from it, as Arrow shards; training on them is reflow.

    label int64 · seed int64 · noise fixed_size_list<float32>[C*H*W] · x fixed_size_list<float32>[C*H*W]
    captions list<string>      the caption that the teacher read; absent if it read labels

x is the result of the teacher's ODE, not rounded to grey levels. Every shard is an Arrow IPC stream of one record
batch, like the shards of a dataset. The folder is an artifact of the kind `pairs`; a recipe names it as `data.pairs`.

References:
    Flow Straight and Fast: Rectified Flow (Liu et al., 2022)   https://arxiv.org/abs/2209.03003
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from genflow.data.ahead import to_device
from genflow.data.shards import map_stream
from genflow.specs import DataSpec
from genflow.storage.store import Artifact

if TYPE_CHECKING:
    import torch

    from genflow.batch import Batch


def write_pairs(
    path: Path, facts: DataSpec, seeds: np.ndarray, labels: np.ndarray, noise: np.ndarray, x: np.ndarray,
    captions: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write one shard.

    Args:
        path: the file to write, in an existing folder.
        facts: the specification of the dataset that the teacher was trained on.
        seeds: (N,) int64; the noise is a function of them.
        labels: (N,) int64.
        noise: (N, C, H, W) float32.
        x: (N, C, H, W) float32.
        captions: (N,) for a teacher that read captions.
    """
    width = pa.list_(pa.float32(), facts.dims)
    fields = [("label", pa.int64()), ("seed", pa.int64()), ("noise", width), ("x", width)]
    arrow_schema = pa.schema(
        [*fields, *([("captions", pa.list_(pa.string()))] if captions else [])],
        metadata={"shape": ",".join(map(str, facts.shape))},
    )
    lists = [
        pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(v, np.float32).ravel()), type=width)
        for v in (noise, x)
    ]
    columns = [pa.array(labels, pa.int64()), pa.array(seeds, pa.int64()), *lists]
    if captions:
        columns.append(pa.array([[caption] for caption in captions], pa.list_(pa.string())))
    batch = pa.record_batch(columns, schema=arrow_schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, arrow_schema) as writer:
        writer.write_batch(batch)


@dataclass(frozen=True)
class Pairs:
    """Memory-mapped pairs, used in place of a training split.

    Args:
        tables: one Arrow table per shard.
        facts: the dataset's specification.
    """

    tables: tuple[pa.Table, ...]
    facts: DataSpec

    @classmethod
    def open(cls, artifact: Artifact, facts: DataSpec) -> "Pairs":
        """Verify the files and memory-map them.

        Raises:
            DataError: a file is missing or corrupt.
        """
        artifact.verify()
        return cls(tuple(map_stream(path) for path in map(artifact.file, artifact.files("*.arrow"))), facts)

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """The number of rows of each shard."""
        return [table.num_rows for table in self.tables]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *self.sizes])

    @cached_property
    def _views(self) -> dict[str, list[np.ndarray]]:
        shapes = {"label": (-1,), "noise": (-1, *self.facts.shape), "x": (-1, *self.facts.shape)}
        return {name: [_values(t.column(name)).reshape(shape) for t in self.tables] for name, shape in shapes.items()}

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        """One column of the given rows, in their order: `label` (B,), `noise` or `x` (B, C, H, W)."""
        shard = self._shard_of(rows)
        views = self._views[name]
        out = np.empty((len(rows), *views[0].shape[1:]), views[0].dtype)
        for number in np.unique(shard):
            mask = shard == number
            out[mask] = views[number][rows[mask] - self._starts[number]]
        return out

    def captions(self, rows: np.ndarray) -> list[list[str]]:
        """The captions of the given rows, in their order."""
        places = zip(shard := self._shard_of(rows), rows - self._starts[shard], strict=True)
        return [self.tables[number].column("captions")[int(row)].as_py() for number, row in places]

    def _shard_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def batch(self, rows: np.ndarray, device: "torch.device") -> "Batch":
        """The rows as a batch for a family: x with the noise that the teacher started from."""
        from genflow.batch import Batch

        x, label, noise = (to_device(self.column(name, rows), device) for name in ("x", "label", "noise"))
        return Batch(x, label, noise)


def _values(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    return (array.flatten() if pa.types.is_fixed_size_list(array.type) else array).to_numpy(zero_copy_only=False)
