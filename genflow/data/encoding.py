"""Pictures as files in the rows of a shard: encoded when it is written, and decoded when rows are read.

    raw   pixels, which are mapped and not decoded; the default
    png   lossless
    webp  lossless; smaller than PNG, and faster to decode
    jpeg  lossy: quality 95 with colour at full resolution

WebP is lossless here because its lossy mode halves the resolution of colour. `python -m benchmarks.encoding` measures
sizes, errors and rates.
"""

import functools
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from genflow.errors import UsageError
from genflow.specs import RAW
from genflow.system.environment import cores

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # how the `datasets` library stores a picture
FEATURE = {"_type": "Image"}  # the same in its metadata; it decodes such a column
MAX_THREADS = 8  # that decode in one process; a machine has as many processes as GPUs
PICTURES_AT_ONCE = 4  # that a thread decodes, at least: starting it costs as much as a small picture


@dataclass(frozen=True)
class Codec:
    """A file format and its settings.

    Args:
        format: Pillow's name.
        options: of Pillow's `save`.
        loss: what is lost, in a few words; empty if decoding gives back every bit.
    """

    format: str
    options: dict[str, Any]
    loss: str = ""


CODECS = {
    "png": Codec("PNG", {"compress_level": 6}),
    "webp": Codec("WEBP", {"lossless": True, "method": 2, "quality": 20}),  # `quality` is effort; more of it saves 3 %
    "jpeg": Codec("JPEG", {"quality": 95, "subsampling": 0}, "quality 95"),
}


def is_lossy(encoding: str) -> bool:
    """Whether decoded pictures differ from the ones that were encoded."""
    return encoding != RAW and bool(CODECS[encoding].loss)


def describe(encoding: str) -> str:
    """The encoding in words, such as `jpeg, lossy (quality 95)`."""
    if encoding == RAW:
        return RAW
    return f"{encoding}, lossy ({CODECS[encoding].loss})" if is_lossy(encoding) else f"{encoding}, lossless"


def require(encoding: str, levels: int | None, source: str) -> None:
    """Check that data can be encoded.

    Args:
        encoding: `raw`, or a key of `CODECS`.
        levels: the grey levels of the data; None for points.
        source: the name of the source, for the error.

    Raises:
        UsageError: it cannot.
    """
    if encoding == RAW:
        return
    if levels is None:
        raise UsageError(
            f"data.encoding={encoding}: {source} contains points of the plane, and only pictures can be encoded",
            "omit --encoding",
        )
    if is_lossy(encoding) and levels != 256:
        raise UsageError(
            f"data.encoding={encoding}: {source} has {levels} grey levels, and a lossy encoding needs 256",
            "--encoding webp, which is lossless",
        )


def encode(pictures: Iterable[np.ndarray], encoding: str) -> pa.Array:
    """Pictures (H, W, C) uint8, C = 1 or 3, as an Arrow array of files."""
    codec, files = CODECS[encoding], []
    for picture in pictures:
        file, pixels = io.BytesIO(), picture[:, :, 0] if picture.shape[2] == 1 else picture
        Image.fromarray(pixels).save(file, codec.format, **codec.options)
        files.append({"bytes": file.getvalue(), "path": None})
    return pa.array(files, FILE)


def decode(files: Sequence[dict[str, Any]], shape: tuple[int, int, int]) -> np.ndarray:
    """Decode files in several threads.

    Args:
        files: rows of an array that `encode` returned.
        shape: (H, W, C) of the records; a picture that is less high is filled up with zeros.

    Returns:
        (B, H, W, C) uint8.
    """
    records = np.zeros((len(files), *shape), np.uint8)
    mode = "L" if shape[2] == 1 else "RGB"

    def fill(rows: Sequence[int]) -> None:
        for row in rows:
            with Image.open(io.BytesIO(files[row]["bytes"]), formats=_FORMATS) as image:
                pixels = np.asarray(image if image.mode == mode else image.convert(mode))  # WebP has no grey pictures
            records[row, : len(pixels)] = pixels.reshape(len(pixels), *shape[1:])

    threads = min(_threads(), len(files) // PICTURES_AT_ONCE)
    if threads < 2:
        fill(range(len(files)))
    else:
        list(_pool().map(fill, [range(first, len(files), threads) for first in range(threads)]))
    return records


_FORMATS = [codec.format for codec in CODECS.values()]


def _threads() -> int:
    return min(cores(), MAX_THREADS)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads(), "decode")


if hasattr(os, "register_at_fork"):  # a child process, such as a worker of a DataLoader, has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
