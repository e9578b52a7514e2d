"""The files of a dataset: Arrow shards with an index, which other tools read without genflow.

A dataset's folder has the layout of the `datasets` library, and every shard is an Arrow IPC *stream* of one record
batch, so `pyarrow.ipc.open_stream` and `datasets.load_from_disk` both read it:

    dataset_dict.json   facts.json   manifest.json
    train/  data-00000-of-00002.arrow  ...  state.json  dataset_info.json
    val/    ...

    image  fixed_size_list<uint8>[H*W*C]   grey levels 0..K-1, row by row, channels last
    label  int64                           class names in the metadata; absent for data without classes
    id     string                          the origin of the record in the source
    captions  list<string>                 the texts that describe the picture; absent for data without captions

With an encoding (`encoding.py`), `image` is a file instead of pixels: struct<bytes: binary, path: string>.
Data with random crops also has `strip fixed_size_list<uint8>[2H*W*C]` and `extent int32`, described in `strips.py`.
Points of the plane have `point fixed_size_list<float32>[2]` and `log_density float64` instead of `image`.
Latents of pictures have `latent fixed_size_list<float16>[H*W*C]` instead, also with channels last.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genflow.data import encoding
from genflow.specs import DataSpec

FACTS = "facts.json"


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
        kind, feature = _pictures(facts, H * W * C)
        fields, features = [pa.field("image", kind)], {"image": feature}
    if facts.classes:
        fields.append(pa.field("label", pa.int64()))
        features["label"] = {"names": list(facts.class_names), "_type": "ClassLabel"}
    fields.append(pa.field("id", pa.string()))
    features["id"] = _value_feature("string")
    if facts.captions:
        fields.append(pa.field("captions", pa.list_(pa.string())))
        features["captions"] = {"feature": _value_feature("string"), "_type": "List"}
    if facts.strip:
        kind, feature = _pictures(facts, facts.strip * W * C)
        fields += [pa.field("strip", kind), pa.field("extent", pa.int32())]
        features |= {"strip": feature, "extent": _value_feature("int32")}
    own = {"shape": [H, W, C], "levels": facts.levels}
    return pa.schema(
        fields,
        metadata={"huggingface": json.dumps({"info": {"features": features}}), "genflow": json.dumps(own)},
    )


def _pictures(facts: DataSpec, length: int) -> tuple[pa.DataType, dict[str, Any]]:
    """The type of a column of pictures of `length` numbers, for Arrow and for `datasets`."""
    if facts.is_encoded:
        return encoding.FILE, encoding.FEATURE
    return pa.list_(pa.uint8(), length), _list_feature("uint8", length)


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
        facts: the dataset's shape, levels, classes and encoding; the counts may be unknown.
        values: (N, H, W, C) uint8 grey levels or float16 latents, or (N, 2) float32 points.
        ids: (N,) the origin of each record.
        labels: (N,) integers, for data with classes.
        log_density: (N,) the true log-density of each point.
        strips, extents: (N, length, W, C) and (N,), for data with random crops.
        captions: (N,) the texts of each record, for data with captions.
    """
    arrow_schema = schema(facts)
    if len(values) and math.prod(values.shape[1:]) != facts.dims:
        raise ValueError(f"records of {values.shape[1:]} do not fit the dataset's shape {facts.shape}")
    columns = [_column(values, facts, arrow_schema.field(0).type)]
    if facts.is_points:
        columns.append(pa.array(np.asarray(log_density, np.float64)))
    if facts.classes:
        columns.append(pa.array(np.asarray(labels, np.int64)))
    columns.append(pa.array([str(id) for id in ids], pa.string()))
    if facts.captions:
        columns.append(pa.array([list(texts) for texts in captions], pa.list_(pa.string())))
    if facts.strip:
        assert strips is not None
        assert extents is not None
        filled = [strip[:length] for strip, length in zip(strips, np.abs(extents), strict=True)]
        kept = filled if facts.is_encoded else strips
        columns += [_column(kept, facts, arrow_schema.field("strip").type), pa.array(extents, pa.int32())]
    batch = pa.record_batch(columns, schema=arrow_schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, arrow_schema) as writer:
        writer.write_batch(batch)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _column(records: np.ndarray | Sequence[np.ndarray], facts: DataSpec, kind: pa.DataType) -> pa.Array:
    if kind == encoding.FILE:
        return encoding.encode(records, facts.encoding)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(records).reshape(-1)), type=kind)


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
