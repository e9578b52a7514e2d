"""NumPy's `.npz`: arrays of pictures and labels with common names (`x_train`, `images`, `labels`, ...)."""

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genflow.data.images import MAX_DEFLATE
from genflow.data.sources import Opens
from genflow.data.sources.arrays import Array, Arrays, SplitArrays, check_size
from genflow.data.sources.base import Source, dataset_name
from genflow.errors import DataError
from genflow.recipe.schema import Data

OPENS = Opens(files=(".npz",), order=6)
MAX_HEADER = 2**16
MAX_LABELS = 2**28  # bytes
PICTURES = ("x_train", "train_images", "train_x", "images", "x", "imgs", "data", "arr_0")
LABELS = ("y_train", "train_labels", "train_y", "labels", "y", "label", "targets", "arr_1")
OTHERS = {
    "val": (("x_val", "val_images", "x_valid"), ("y_val", "val_labels", "y_valid")),
    "test": (("x_test", "test_images", "test_x"), ("y_test", "test_labels", "test_y")),
}


def open_path(path: Path, data: Data) -> Source | None:
    """Open an `.npz` file; return None for other paths."""
    is_npz = path.is_file() and path.suffix.lower() == ".npz"
    return Npz(dataset_name(path.stem), str(path), [str(path)]) if is_npz else None


@dataclass
class Npz(Arrays):
    """An `.npz` file."""

    kind = "npz"

    def read(self) -> SplitArrays:
        return read_npz(self.path)


def read_npz(path: str) -> SplitArrays:
    """The splits in an `.npz`, by the common names of its arrays.

    Raises:
        DataError: no array contains pictures, or one contains Python objects, which are never unpickled.
    """
    with zipfile.ZipFile(path) as archive:
        members = {name[:-4].lower(): name for name in archive.namelist() if name.lower().endswith(".npy")}
    found: SplitArrays = {}
    for split, (images, labels) in {"train": (PICTURES, LABELS), **OTHERS}.items():
        image = next((members[name] for name in images if name in members), None)
        if image is None and split == "train" and len(members) == 1:
            image = next(iter(members.values()))
        if image is None:
            continue
        label = next((members[name] for name in labels if name in members), None)
        found[split] = _npy_pictures(path, image), None if label is None else _npy_labels(path, label)
    if "train" not in found:
        arrays = ", ".join(members) or "none"
        raise DataError(f"{path} has no array of pictures; its arrays: {arrays}", f"name the pictures {PICTURES[0]}")
    return found


def _npy_header(path: str, member: str) -> Array:
    """Read a `.npy` header inside an `.npz`."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        width = 2 if version == (1, 0) else 4
        length = int.from_bytes(file.read(width), "little")
        if length > MAX_HEADER:
            raise DataError(f"{path}: {member} declares a header of {length:,} bytes; the limit is {MAX_HEADER:,}")
        header = io.BytesIO(length.to_bytes(width, "little") + file.read(length))
        read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(header)
        start, info = file.tell(), archive.getinfo(member)
    if dtype.hasobject:
        raise DataError(f"{path}: {member} contains Python objects, which are not read", "save numeric arrays")
    if fortran and len(shape) > 1:
        raise DataError(f"{path}: {member} is in Fortran order", "save it with np.ascontiguousarray")
    array = Array(path, member, start, shape, dtype.str)
    stored = min(info.compress_size, Path(path).stat().st_size)
    most = info.file_size
    if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the archive's directory may be wrong
        most = min(most, stored * (MAX_DEFLATE if info.compress_type == zipfile.ZIP_DEFLATED else 1))
    check_size(f"{path}: {member}", shape, array.bytes, most, stored)
    return array


def _npy_pictures(path: str, member: str) -> Array:
    """An array of pictures: (N, H, W), (N, H, W, C) or (N, C, H, W); the axis with 1 to 4 entries is C."""
    array = _npy_header(path, member)
    name = f"{path}: {member}"
    if np.dtype(array.dtype).kind not in "buif":
        raise DataError(f"{name} contains {np.dtype(array.dtype)}, not numbers")
    if len(array.shape) not in (3, 4) or not all(array.shape):
        raise DataError(f"{name} has the shape {array.shape}; pictures are (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if len(array.shape) == 4 and not 1 <= array.shape[3] <= 4:
        if not 1 <= array.shape[1] <= 4:
            raise DataError(f"{name} has the shape {array.shape}: neither axis 2 nor axis 4 has 1 to 4 channels")
        return Array(path, member, array.start, array.shape, array.dtype, planar=True)
    return array


def _npy_labels(path: str, member: str) -> np.ndarray:
    """Labels: (N,) or (N, 1) integers or strings, or (N, classes) one-hot."""
    header = _npy_header(path, member)
    if (size := math.prod(header.shape) * np.dtype(header.dtype).itemsize) > MAX_LABELS:
        raise DataError(f"{path}: {member} declares {size:,} bytes of labels; the limit is {MAX_LABELS:,}")
    with np.load(path, allow_pickle=False) as archive:
        labels = np.asarray(archive[member])
    if labels.ndim == 2:
        labels = labels[:, 0] if labels.shape[1] == 1 else labels.argmax(1)
    if labels.ndim != 1:
        raise DataError(f"{path}: {member} has the shape {labels.shape}; labels are (N,)")
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "buiUS":
        raise DataError(f"{path}: {member} contains {labels.dtype}; labels are integers or strings")
    return labels.astype(str) if labels.dtype.kind == "S" else labels
