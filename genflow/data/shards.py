"""Arrow shards: decoded pixels, memory-mapped for batches, in files that other tools read without genflow.

A dataset's folder has the layout of the `datasets` library, and every shard is an Arrow IPC *stream* of one record
batch, so `pyarrow.ipc.open_stream` and `datasets.load_from_disk` both read it:

    dataset_dict.json   facts.json   manifest.json
    train/  data-00000-of-00002.arrow  ...  state.json  dataset_info.json
    val/    ...

    image  fixed_size_list<uint8>[H*W*C]   grey levels 0..K-1, row by row, channels last
    label  int64                           class names in the metadata; absent for data without classes
    id     string                          the origin of the record in the source
    captions  list<string>                 the texts that describe the picture; absent for data without captions

Data with random crops also has `strip fixed_size_list<uint8>[2H*W*C]` and `extent int32`, described in `strips.py`.
Points of the plane have `point fixed_size_list<float32>[2]` and `log_density float64` instead of `image`.
Latents of pictures have `latent fixed_size_list<float16>[H*W*C]` instead, also with channels last.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from genflow.data.ahead import to_device
from genflow.errors import DataError
from genflow.specs import DataSpec
from genflow.storage.store import Artifact

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genflow.batch import Batch

FACTS = "facts.json"
MAX_MAPPED = 512  # shards of a split that stay mapped; each keeps a file open
HASHED_AT_OPEN = 2**30  # bytes of a dataset's shards that are hashed before they are used; else each at its first use


def schema(facts: DataSpec) -> pa.Schema:
    """The shards' schema; its metadata contains the types for `datasets` and the shape for genflow."""
    C, H, W = facts.shape
    features: dict[str, Any]
    if facts.is_points:
        fields = [pa.field("point", pa.list_(pa.float32(), 2)), pa.field("log_density", pa.float64())]
        features = {"point": _list_feature("float32", 2), "log_density": _value_feature("float64")}
    elif facts.is_latents:
        fields = [pa.field("latent", pa.list_(pa.float16(), H * W * C))]
        features = {"latent": _list_feature("float16", H * W * C)}
    else:
        fields = [pa.field("image", pa.list_(pa.uint8(), H * W * C))]
        features = {"image": _list_feature("uint8", H * W * C)}
    if facts.classes:
        fields.append(pa.field("label", pa.int64()))
        features["label"] = {"names": list(facts.class_names), "_type": "ClassLabel"}
    fields.append(pa.field("id", pa.string()))
    features["id"] = _value_feature("string")
    if facts.captions:
        fields.append(pa.field("captions", pa.list_(pa.string())))
        features["captions"] = {"feature": _value_feature("string"), "_type": "List"}
    if facts.strip:
        fields += [pa.field("strip", pa.list_(pa.uint8(), facts.strip * W * C)), pa.field("extent", pa.int32())]
        features |= {"strip": _list_feature("uint8", facts.strip * W * C), "extent": _value_feature("int32")}
    own = {"shape": [H, W, C], "levels": facts.levels}
    return pa.schema(
        fields,
        metadata={"huggingface": json.dumps({"info": {"features": features}}), "genflow": json.dumps(own)},
    )


def _value_feature(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "_type": "Value"}


def _list_feature(dtype: str, length: int) -> dict[str, Any]:
    return {"feature": _value_feature(dtype), "length": length, "_type": "List"}


def write_shard(
    path: Path,
    facts: DataSpec,
    values: np.ndarray,
    ids: Sequence[str],
    labels: np.ndarray | None = None,
    log_density: np.ndarray | None = None,
    strips: np.ndarray | None = None,
    extents: np.ndarray | None = None,
    captions: Sequence[tuple[str, ...]] = (),
) -> str:
    """Write one shard and return the SHA-256 of its bytes.

    Args:
        path: the file to write, in an existing folder.
        facts: the dataset's shape, levels and classes; the counts may be unknown.
        values: (N, H, W, C) uint8 grey levels or float16 latents, or (N, 2) float32 points.
        ids: (N,) the origin of each record.
        labels: (N,) integers, for data with classes.
        log_density: (N,) the true log-density of each point.
        strips, extents: (N, length, W, C) and (N,), for data with random crops.
        captions: (N,) the texts of each record, for data with captions.
    """
    arrow_schema, (C, _, W) = schema(facts), facts.shape
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    if len(flat) and flat.shape[1] != arrow_schema.field(0).type.list_size:
        raise ValueError(f"records of {values.shape[1:]} do not fit the dataset's shape {facts.shape}")
    records = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), type=arrow_schema.field(0).type)
    columns: list[pa.Array] = [records]
    if facts.is_points:
        columns.append(pa.array(np.asarray(log_density, np.float64)))
    if facts.classes:
        columns.append(pa.array(np.asarray(labels, np.int64)))
    columns.append(pa.array([str(id) for id in ids], pa.string()))
    if facts.captions:
        columns.append(pa.array([list(texts) for texts in captions], pa.list_(pa.string())))
    if facts.strip:
        kept = pa.array(np.ascontiguousarray(strips).reshape(-1))
        columns += [pa.FixedSizeListArray.from_arrays(kept, facts.strip * W * C), pa.array(extents, pa.int32())]
    batch = pa.record_batch(columns, schema=arrow_schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, arrow_schema) as writer:
        writer.write_batch(batch)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_name(number: int, total: int) -> str:
    """The name that the `datasets` library gives a shard."""
    return f"data-{number:05d}-of-{total:05d}.arrow"


def shard_ranges(rows: int, size: int, folder: str = "") -> list[tuple[str, int, int]]:
    """(file, first row, last row + 1) of each shard of `size` rows; `folder` precedes the name of the file."""
    total = -(-rows // size)
    return [(folder + shard_name(n, total), n * size, min((n + 1) * size, rows)) for n in range(total)]


def write_index(folder: Path, facts: DataSpec, shards: dict[str, dict[str, int]]) -> None:
    """Write the index of a dataset: facts.json, and the files that `datasets.load_from_disk` reads.

    Args:
        folder: the dataset's folder.
        facts: the complete specification, with counts and fingerprint.
        shards: for each split, the files of its shards and their numbers of rows.
    """
    features = json.loads(schema(facts).metadata[b"huggingface"])["info"]["features"]
    for split, names in shards.items():
        state: dict[str, Any] = {
            "_data_files": [{"filename": name, "rows": rows} for name, rows in names.items()],
            "_fingerprint": hashlib.sha256(f"{facts.fingerprint}/{split}".encode()).hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        (folder / split / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        info = {"features": features, "citation": "", "description": "", "homepage": "", "license": ""}
        (folder / split / "dataset_info.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(shards)}), encoding="utf-8")
    (folder / FACTS).write_text(json.dumps(facts.to_json(), indent=1), encoding="utf-8")


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
        """(N, H, W, C), of the type that `record_format` describes; a view if there is one shard."""
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

    @cached_property
    def _starts(self) -> np.ndarray:
        rows = self.tables.rows if isinstance(self.tables, Shards) else [table.num_rows for table in self.tables]
        return np.cumsum([0, *rows])

    def batch(self, rows: np.ndarray, device: "torch.device", records: np.ndarray | None = None) -> "Batch":
        """The records of `rows` as a batch for a family; `records` replaces them, with the labels of `rows`."""
        from genflow.batch import Batch

        values = to_device(self.take(rows) if records is None else records, device)
        return Batch(to_x(values, self.facts), to_device(self.labels_of(rows), device))

    def column(self, name: str, rows: np.ndarray) -> list[Any]:
        """The values of a column of texts in `rows`, in that order."""
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        places = zip(shard.tolist(), (rows - self._starts[shard]).tolist(), strict=True)
        return [self.tables[number].column(name)[row].as_py() for number, row in places]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The records of `rows`, in that order: (B, H, W, C)."""
        return self._gather(rows, self._view)

    def strips(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The strips (B, length, W, C) of `rows` and their extents (B,), for data with random crops."""
        return self._gather(rows, self._strip), self._gather(rows, self._extent)

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


def record_format(facts: DataSpec) -> tuple[tuple[int, int, int], type[np.generic]]:
    """Shape and type of a record: (H, W, C) uint8 grey levels or float16 latents, or (1, 1, 2) float32 points."""
    if facts.is_points:
        return (1, 1, 2), np.float32
    C, H, W = facts.shape
    return (H, W, C), np.float16 if facts.is_latents else np.uint8


def map_stream(path: Path) -> pa.Table:
    """Memory-map a shard.

    Raises:
        DataError: the file is missing or not an Arrow stream.
    """
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is not a readable Arrow stream: {error}", "prepare the dataset again") from error


def to_x(values: "np.ndarray | Tensor", facts: DataSpec) -> "Tensor":
    """Convert records (B, H, W, C) to the model's input x (B, C, H, W) float32.

    x = (2k + 1)/K - 1 for grey levels k in 0..K-1 (bin centres); x = point / scale for points; latents as they are.
    """
    import torch  # not at the top: workers that write shards do not need it, and it costs 1.5 s and 200 MB each

    if isinstance(values, np.ndarray):  # a view of the file is read-only, and torch warns about that
        values = np.require(values, requirements=["C", "W"])
    tensor = torch.as_tensor(values)
    # Torch's own order of memory, in the strides as well: kernels take a picture of one channel with the strides of
    # channels last for such a picture, and are slower.
    x = tensor.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if facts.levels is None:
        return x.div_(facts.scale)
    return x.mul_(2 / facts.levels).add_(1 / facts.levels - 1)


def from_x(x: "Tensor", facts: DataSpec) -> np.ndarray:
    """Round x to the nearest records: (B, H, W, C) uint8 grey levels; float32 points or latents are not rounded."""
    x = x.detach().float().cpu().permute(0, 2, 3, 1)
    if facts.levels is None:
        return (x * facts.scale).numpy()
    levels = ((x + 1) * (facts.levels / 2) - 0.5).round().clamp(0, facts.levels - 1)
    return levels.byte().numpy()


def to_display(images: np.ndarray, facts: DataSpec) -> np.ndarray:
    """Scale grey levels 0..K-1 to 0..255, for files and screens: (N, H, W, C) uint8."""
    levels = facts.levels or 256
    if levels == 256:
        return images.astype(np.uint8, copy=False)
    return np.rint(images.astype(np.float32) * (255 / (levels - 1))).astype(np.uint8)
