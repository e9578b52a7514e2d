"""Read pictures from a column of a table: encoded bytes, paths of picture files, or arrays of numbers."""

import io
import json
import math
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genflow.data import images
from genflow.data.images import MAX_BYTES, UnreadableImage, fit_array, to_levels
from genflow.data.sources.base import ImageSpec, ImageSummary
from genflow.errors import DataError

PATH_NAMES = ("image_path", "img_path", "file_name", "filename", "image_file", "filepath", "file_path", "path", "file")
NAMES = ("image", "img", "picture", "images", "pixels", "pixel_values", "x", "data")


@dataclass(frozen=True)
class ImageColumn:
    """A column of pictures, and how a picture is stored in it.

    Args:
        column: the column's name.
        encoded: whether a cell contains an image file, or its path, instead of numbers.
        shape: (H, W, C) from the file's metadata; None: derived from the nesting of the lists.
        levels: K, the number of grey levels.
        several: whether a cell is a list of image files; the first one is used.
        by_name: whether a cell is only the path of an image file.
    """

    column: str
    encoded: bool
    shape: tuple[int, int, int] | None = None
    levels: int = 256
    several: bool = False
    by_name: bool = False

    def summarize(self, column: pa.Array, index: int, folders: tuple[str, ...]) -> ImageSummary:
        """A picture's size, and whether it is in colour; an empty summary if it is unreadable.

        Args:
            column: some cells.
            index: the picture's cell.
            folders: the folders that a path in a cell is relative to.
        """
        try:
            if self.encoded:
                with self._open(column, index, folders) as file:
                    return images.read_header(file)
            values = self._array(column, index)
            height, width, channels = values.shape
            finite = values[np.isfinite(values)] if values.dtype != np.uint8 else values[:0]
            if not finite.size:
                return ImageSummary.of_size(width, height, channels > 2)
            low, high = float(finite.min()), float(finite.max())
            return ImageSummary.of_size(width, height, channels > 2, high > 255, low=low, high=high)
        except Exception:  # decoding the picture will report the reason
            return ImageSummary()

    def decode(self, column: pa.Array, index: int, folders: tuple[str, ...], spec: ImageSpec) -> np.ndarray | str:
        """Decode a picture to the dataset's shape, (side, side, C) uint8; or return why it is unreadable."""
        try:
            if self.encoded:
                with self._open(column, index, folders) as file:
                    try:
                        return images.decode(file, spec)
                    except Exception as error:
                        return images.describe_error(error, file)
            return fit_array(to_levels(self._array(column, index), spec.low, spec.high, spec.bits), spec)
        except Exception as error:
            return images.describe_error(error)

    def path(self, column: pa.Array, index: int) -> str:
        """The path in a cell that has no bytes; empty if the cell has bytes, or neither."""
        try:
            cell, index = self._first(column, index)
        except UnreadableImage:
            return ""
        if not self.encoded or not cell[index].is_valid:
            return ""
        if pa.types.is_struct(cell.type):
            names = [field.name for field in cell.type]
            if "path" not in names or ("bytes" in names and _has_bytes(cell.field("bytes")[index])):
                return ""
            cell = cell.field("path")
        return str(cell[index].as_py() or "") if is_text(cell.type) else ""

    def _open(self, column: pa.Array, index: int, folders: tuple[str, ...]) -> BinaryIO:
        """The image file of a cell: its bytes, or the file that it names."""
        if path := self.path(column, index):
            return open_named(path, folders)
        return io.BytesIO(self._bytes(*self._first(column, index)))

    def _first(self, column: pa.Array, index: int) -> tuple[pa.Array, int]:
        """The first picture of a cell: the column that contains it, and its index there."""
        if not self.several:
            return column, index
        if not column[index].is_valid or not len(column[index]):
            raise UnreadableImage("the row has no picture")
        return column.slice(index, 1).flatten(), 0

    def _bytes(self, column: pa.Array, index: int) -> bytes:
        if not column[index].is_valid:
            raise UnreadableImage("the cell has no bytes")
        if pa.types.is_struct(column.type):
            column = column.field("bytes")
        if not _has_bytes(column[index]):
            raise UnreadableImage("the cell has no bytes")
        value = column[index]
        if len(value.as_buffer()) > MAX_BYTES:
            raise UnreadableImage(f"{len(value.as_buffer()) / 1e6:.0f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB")
        return bytes(value.as_buffer())

    def _array(self, column: pa.Array, index: int) -> np.ndarray:
        """A cell's numbers as (H, W, C)."""
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if not column[index].is_valid:
            raise UnreadableImage("the cell has no numbers")
        values, shape = column.slice(index, 1), []
        while _is_list(values.type):
            lengths = pc.list_value_length(values)
            if lengths.null_count or not len(lengths) or pc.min(lengths).as_py() != pc.max(lengths).as_py():
                raise UnreadableImage("the rows of the picture have different lengths")
            shape.append(int(lengths[0].as_py()))
            values = values.flatten()
        if values.null_count:
            raise UnreadableImage("contains null values")
        numbers = values.to_numpy(zero_copy_only=False)
        return _to_hwc(numbers, self.shape or tuple(shape))


def _to_hwc(numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Reshape numbers to (H, W, C): a flat list must be a square picture; channels are the first or the last axis."""
    if len(shape) == 1:
        for channels in (1, 3):
            side = math.isqrt(len(numbers) // channels)
            if side and side * side * channels == len(numbers):
                return numbers.reshape(side, side, channels)
        raise UnreadableImage(f"{len(numbers)} numbers do not form a square picture")
    if len(shape) not in (2, 3) or not all(shape):
        raise UnreadableImage(f"an array of shape {shape} is not a picture")
    values = numbers.reshape(*shape)
    if len(shape) == 2:
        return values[:, :, None]
    if shape[2] > 4:
        if shape[0] > 4:
            raise UnreadableImage(f"an array of shape {shape} has 1 to 4 channels neither first nor last")
        return np.moveaxis(values, 0, -1)
    return values


def find_image_column(schema: pa.Schema, where: str) -> ImageColumn:
    """Find the column of pictures, by type and common names.

    Raises:
        DataError: there is no such column.
    """
    cells = [cell for cell in (_image_column(schema, field) for field in schema) if cell]
    if not cells:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        raise DataError(f"{where} has no column of pictures; its columns: {columns}",
                        f"add a column {NAMES[0]} with encoded bytes or lists of numbers")  # fmt: skip
    contained = [cell for cell in cells if not cell.by_name]
    named = [cell for name in (*NAMES, *PATH_NAMES) for cell in contained or cells if cell.column == name]
    return (named or contained or cells)[0]


def _image_column(schema: pa.Schema, field: pa.Field) -> ImageColumn | None:
    kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    shape, levels = _layout(schema)
    if _is_file(kind):
        return ImageColumn(field.name, True, levels=levels, by_name=not _has_field(kind, "bytes"))
    if _is_binary(kind):
        return ImageColumn(field.name, True)
    if is_text(kind):
        return ImageColumn(field.name, True, by_name=True) if field.name in (*NAMES, *PATH_NAMES) else None
    if _is_list(kind) and (_is_file(kind.value_type) or _is_binary(kind.value_type)):
        return ImageColumn(field.name, True, several=True)
    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    if not depth or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    return ImageColumn(field.name, False, shape, levels)


def _layout(schema: pa.Schema) -> tuple[tuple[int, int, int] | None, int]:
    """The shape and the grey levels of pictures, which genflow's own shards store in the metadata."""
    try:
        layout = json.loads((schema.metadata or {})[b"genflow"])
        height, width, channels = layout["shape"]
        return (height, width, channels), int(layout["levels"])
    except (KeyError, ValueError, TypeError):
        return None, 256


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_file(kind: pa.DataType) -> bool:
    """Whether a type is a file as `datasets` stores it: its bytes, or its path."""
    return (_has_field(kind, "bytes") and _is_binary(kind.field("bytes").type)) or (
        _has_field(kind, "path") and is_text(kind.field("path").type)
    )


def _has_field(kind: pa.DataType, name: str) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index(name) >= 0)


def _has_bytes(value: pa.Scalar) -> bool:
    return bool(value.is_valid and value.as_buffer() is not None and len(value.as_buffer()))


def same_kind(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether pictures of two columns are stored alike: both encoded, or both as numbers of one type."""
    while _is_list(one) and _is_list(other):
        one, other = one.value_type, other.value_type
    numbers = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (one, other)]
    return one == other if any(numbers) else True


def folders_of(root: str, name: str) -> tuple[str, ...]:
    """The folders that a path in a table may be relative to: the table's own, and the source's."""
    return tuple(dict.fromkeys((os.path.dirname(f"{root}/{name}"), root)))


def find_named(path: str, folders: tuple[str, ...]) -> str:
    """The file that a cell names, inside one of some folders.

    Raises:
        UnreadableImage: there is no such file, or the path is outside the folders.
    """
    inside = False
    for folder in folders:
        file = os.path.normpath(os.path.join(folder, path.replace("\\", "/") if "/" not in path else path))
        if "\0" not in file and os.path.commonpath([file, folders[-1]]) == os.path.normpath(folders[-1]):
            inside = True
            if os.path.exists(file):
                return file
    if not inside:
        raise UnreadableImage("the path is outside the folder of the table, and only files inside it are read")
    raise UnreadableImage("the cell has a path and no bytes, and there is no such file in the folder of the table")


def open_named(path: str, folders: tuple[str, ...]) -> BinaryIO:
    """Open the file that a cell names.

    Raises:
        UnreadableImage: it cannot be opened.
    """
    return images.open_image_file(find_named(path, folders))


def file_facts(path: str, folders: tuple[str, ...]) -> list[Any]:
    """The path, size and modification time of the file that a cell names; empty if there is none."""
    try:
        facts = os.stat(find_named(path, folders))
    except (OSError, UnreadableImage):
        return []
    return [path, facts.st_size, facts.st_mtime_ns]
