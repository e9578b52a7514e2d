"""Read pictures from a column of a table: encoded bytes, or arrays of numbers."""

import io
import json
import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genflow.data import images
from genflow.data.images import MAX_BYTES, UnreadableImage, fit_array, to_levels
from genflow.data.sources.base import ImageSpec, ImageSummary
from genflow.errors import DataError

NAMES = ("image", "img", "picture", "images", "pixels", "pixel_values", "x", "data")


@dataclass(frozen=True)
class ImageColumn:
    """A column of pictures, and how a picture is stored in it.

    Args:
        column: the column's name.
        encoded: whether a cell contains the bytes of an image file instead of numbers.
        shape: (H, W, C) from the file's metadata; None: derived from the nesting of the lists.
        levels: K, the number of grey levels.
    """

    column: str
    encoded: bool
    shape: tuple[int, int, int] | None = None
    levels: int = 256

    def summarize(self, column: pa.Array, index: int) -> ImageSummary:
        """A picture's size, and whether it is in colour; an empty summary if it is unreadable."""
        try:
            if self.encoded:
                return images.read_header(io.BytesIO(self._bytes(column, index)))
            values = self._array(column, index)
            height, width, channels = values.shape
            finite = values[np.isfinite(values)] if values.dtype != np.uint8 else values[:0]
            if not finite.size:
                return ImageSummary.of_size(width, height, channels > 2)
            low, high = float(finite.min()), float(finite.max())
            return ImageSummary.of_size(width, height, channels > 2, high > 255, low=low, high=high)
        except Exception:  # decoding the picture will report the reason
            return ImageSummary()

    def decode(self, column: pa.Array, index: int, spec: ImageSpec) -> np.ndarray | str:
        """Decode a picture to the dataset's shape, (side, side, C) uint8; or return why it is unreadable."""
        file = None
        try:
            if self.encoded:
                file = io.BytesIO(self._bytes(column, index))
                return images.decode(file, spec)
            return fit_array(to_levels(self._array(column, index), spec.low, spec.high, spec.bits), spec)
        except Exception as error:
            return images.describe_error(error, file)

    def _bytes(self, column: pa.Array, index: int) -> bytes:
        if pa.types.is_struct(column.type):
            column = column.field("bytes")
        value = column[index]
        if not value.is_valid or not len(value.as_buffer()):
            raise UnreadableImage("the cell has no bytes")
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
        while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or _is_fixed(values.type):
            lengths = pc.list_value_length(values)
            if lengths.null_count or not len(lengths) or pc.min(lengths).as_py() != pc.max(lengths).as_py():
                raise UnreadableImage("the rows of the picture have different lengths")
            shape.append(int(lengths[0].as_py()))
            values = values.flatten()
        if values.null_count:
            raise UnreadableImage("contains null values")
        numbers = values.to_numpy(zero_copy_only=False)
        return _to_hwc(numbers, self.shape or tuple(shape))


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


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
    named = [cell for name in NAMES for cell in cells if cell.column == name]
    return (named or cells)[0]


def _image_column(schema: pa.Schema, field: pa.Field) -> ImageColumn | None:
    kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    if pa.types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        return ImageColumn(field.name, True) if "bytes" in names and _is_binary(kind.field("bytes").type) else None
    if _is_binary(kind):
        return ImageColumn(field.name, True)
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or _is_fixed(kind):
        kind, depth = kind.value_type, depth + 1
    if not depth or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    try:  # genflow's own shards store the shape of their flat lists in the metadata
        layout = json.loads((schema.metadata or {})[b"genflow"])
        height, width, channels = layout["shape"]
        return ImageColumn(field.name, False, (height, width, channels), int(layout["levels"]))
    except (KeyError, ValueError, TypeError):
        return ImageColumn(field.name, False)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
