"""Write samples as a grid, a folder of images, an array or a table; the path's suffix decides."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genflow.data import preview
from genflow.errors import GenflowError, ResourceError, SetupError, UsageError
from genflow.specs import DataSpec
from genflow.storage.files import disk_error, write_atomically


def form_of(out: Path) -> str:
    """`.png`, `.npy`, `.parquet`, or `folder` for a path without a suffix.

    Raises:
        UsageError: the suffix is none of these.
    """
    form = out.suffix or "folder"
    if form not in ("folder", ".png", ".npy", ".parquet"):
        raise UsageError(f"cannot write samples as {out.suffix}", "use grid.png, a folder/, samples.npy or .parquet")
    return form


def write(
    out: Path, images: np.ndarray, labels: np.ndarray, index: dict[str, list[int]], facts: DataSpec,
    columns: int | None, prompts: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write samples in the form of `form_of(out)`.

    Args:
        out: a file, or a folder.
        images: (N, H, W, C) uint8 grey levels 0..K-1, or (N, 1, 1, 2) float32 points.
        labels: (N,); `facts.classes` means no label.
        index: numbers that identify each sample, by name, for example its seed.
        facts: of the dataset.
        columns: of a grid.
        prompts: (N,) the captions; empty for samples of labels. A folder then has a metadata.jsonl with them, so that
            `genflow prepare` and Hugging Face's `datasets` read it as captioned pictures.

    Raises:
        UsageError: the suffix is unknown.
        ResourceError: the disk is full or broken.
        SetupError: the file or folder cannot be written.
    """
    form = form_of(out)
    try:
        if form == ".png":
            write_atomically(out, preview.render(images, facts, columns))
        elif form == ".npy":
            write_atomically(out, preview.npy(images, facts))
        elif form == ".parquet":
            write_atomically(out, _parquet(images, labels, index, facts, prompts))
        else:
            _write_folder(out, images, labels, index, facts, prompts)
    except OSError as error:
        raise output_error(error, out) from error


def output_error(error: OSError, out: Path) -> GenflowError:
    """One line for an error of writing what the option --out names."""
    if isinstance(found := disk_error(error, out), ResourceError):
        return found
    return SetupError(f"cannot write {out}: {error.strerror or error}", "choose another --out")


def _write_folder(
    out: Path, images: np.ndarray, labels: np.ndarray, index: dict[str, list[int]], facts: DataSpec,
    prompts: Sequence[str],
) -> None:  # fmt: skip
    described = []
    for i, png in enumerate(preview.pngs(images, facts)):
        name = facts.class_names[labels[i]] if labels[i] < facts.classes else ""
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        numbers = "_".join(f"{what}_{values[i]:06d}" for what, values in index.items())
        file = f"{numbers}{'_' + safe if safe else ''}.png"
        write_atomically(out / file, png)
        if prompts:
            described.append(json.dumps({"file_name": file, "text": prompts[i]}, ensure_ascii=False))
    if described:
        write_atomically(out / "metadata.jsonl", "\n".join([*described, ""]))


def _parquet(
    images: np.ndarray, labels: np.ndarray, index: dict[str, list[int]], facts: DataSpec, prompts: Sequence[str]
) -> bytes:
    """A Parquet file of PNG images, with the metadata by which Hugging Face's `datasets` decodes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from genflow.data.encoding import FEATURE, FILE

    pngs = preview.pngs(images, facts)
    features: dict[str, Any] = {"image": FEATURE}
    features |= {what: {"dtype": "int64", "_type": "Value"} for what in index}
    columns: dict[str, Any] = {
        "image": pa.array([{"bytes": png, "path": None} for png in pngs], FILE),
        **{what: pa.array(values, pa.int64()) for what, values in index.items()},
    }
    if facts.classes:
        features["label"] = {"names": list(facts.class_names), "_type": "ClassLabel"}
        columns["label"] = pa.array([int(v) if v < facts.classes else None for v in labels], pa.int64())
    if prompts:
        features["prompt"] = {"dtype": "string", "_type": "Value"}
        columns["prompt"] = pa.array(prompts, pa.string())
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())
