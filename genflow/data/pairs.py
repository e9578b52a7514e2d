"""Pairs of noise and what a teacher makes of it, as Arrow shards: training on them is reflow.

    label int64 · seed int64 · noise fixed_size_list<float32>[C*H*W] · x fixed_size_list<float32>[C*H*W]

x is what the teacher's ODE gave, not rounded to grey levels. Like a dataset's, every shard is an Arrow IPC stream of
one record batch; the folder is an artifact of the kind `pairs`, which a recipe names as `data.pairs`.

References:
    Flow Straight and Fast: Rectified Flow (Liu et al., 2022)   https://arxiv.org/abs/2209.03003
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from genflow.data.shards import map_stream
from genflow.specs import DataSpec
from genflow.storage.store import Artifact

if TYPE_CHECKING:
    import torch

    from genflow.batch import Batch


def write_pairs(
    path: Path, facts: DataSpec, seeds: np.ndarray, labels: np.ndarray, noise: np.ndarray, x: np.ndarray
) -> None:
    """Write one shard.

    Args:
        path: the file; its folder exists.
        facts: of the dataset that the teacher was trained on.
        seeds: (N,) int64, of which the noise is a function.
        labels: (N,) int64.
        noise: (N, C, H, W) float32.
        x: (N, C, H, W) float32.
    """
    width = pa.list_(pa.float32(), facts.dims)
    arrow_schema = pa.schema(
        [("label", pa.int64()), ("seed", pa.int64()), ("noise", width), ("x", width)],
        metadata={"shape": ",".join(map(str, facts.shape))},
    )
    lists = [
        pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(v, np.float32).ravel()), type=width)
        for v in (noise, x)
    ]
    batch = pa.record_batch([pa.array(labels, pa.int64()), pa.array(seeds, pa.int64()), *lists], schema=arrow_schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, arrow_schema) as writer:
        writer.write_batch(batch)


@dataclass(frozen=True)
class Pairs:
    """Memory-mapped pairs; they stand where a training split stands.

    Args:
        tables: one Arrow table a shard.
        facts: the dataset's.
    """

    tables: tuple[pa.Table, ...]
    facts: DataSpec

    @classmethod
    def open(cls, artifact: Artifact, facts: DataSpec) -> "Pairs":
        """Verify and memory-map pairs.

        Raises:
            DataError: a file is missing or corrupt.
        """
        artifact.verify()
        return cls(tuple(map_stream(path) for path in sorted(artifact.path.glob("*.arrow"))), facts)

    def __len__(self) -> int:
        return sum(table.num_rows for table in self.tables)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(table.num_rows for table in self.tables)])

    @cached_property
    def _views(self) -> dict[str, list[np.ndarray]]:
        shapes = {"label": (-1,), "noise": (-1, *self.facts.shape), "x": (-1, *self.facts.shape)}
        return {name: [_values(t.column(name)).reshape(shape) for t in self.tables] for name, shape in shapes.items()}

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        """`label` (B,), or `noise` or `x` (B, C, H, W), of some rows, in their order."""
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        views = self._views[name]
        out = np.empty((len(rows), *views[0].shape[1:]), views[0].dtype)
        for number in np.unique(shard):
            mask = shard == number
            out[mask] = views[number][rows[mask] - self._starts[number]]
        return out

    def batch(self, rows: np.ndarray, device: "torch.device") -> "Batch":
        """The rows as what a family takes: x with the noise it came from."""
        import torch

        from genflow.batch import Batch

        x, label, noise = (
            torch.from_numpy(self.column(name, rows)).to(device, non_blocking=True) for name in ("x", "label", "noise")
        )
        return Batch(x, label, noise)


def _values(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    return (array.flatten() if pa.types.is_fixed_size_list(array.type) else array).to_numpy(zero_copy_only=False)
