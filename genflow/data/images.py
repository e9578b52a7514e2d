"""Decode image files of common formats into square uint8 arrays; a damaged or hostile file raises `UnreadableImage`.

The steps, in this order:

1. Accept only PNG, JPEG, WebP, BMP, TIFF, GIF and AVIF, and HEIC if `pillow-heif` is installed, recognised by content.
   Of an animation, use the first frame.
   Reject a file of more than `MAX_PIXELS` pixels or `MAX_BYTES` bytes before decoding it.
2. Decode a JPEG that is much larger than needed at 1/2, 1/4 or 1/8 of its size, which its DCT allows.
3. Convert 16-bit grey to 8 bits by k/257, or by 255 k/(2^b - 1) if the values have b bits. Composite transparency on
   white. Convert CMYK and palettes to RGB, without colour profiles. For one channel, grey is 0.299 R + 0.587 G
   + 0.114 B.
4. Resize the short side to the target side (bicubic, antialiased) and crop the centre square; or resize the long side
   and pad; or keep a strip for random crops.
5. Apply the EXIF orientation.
"""

import importlib.util
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import Image, features

from genflow.data import strips
from genflow.data.skipped import AVIF, CURES, HEIC
from genflow.data.sources.base import ImageSpec, ImageSummary
from genflow.specs import DataSpec

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # those that Pillow always reads
SUPPORTED = "PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or HEIC"
SUFFIXES = frozenset((
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    *(".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
))
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
MAX_PIXELS = 2**26  # 67 megapixels; decoding then stays below 0.9 GB in every format
MAX_BYTES = 2**28
MAX_SCANS = 100  # of a JPEG; encoders write about ten, and an empty one of a few bytes costs a pass over all pixels
MAX_DEFLATE = 1032  # bytes that one compressed byte can expand to in gzip, zip and PNG
GREY = frozenset(("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"))
ORIENTATION = 0x0112  # the EXIF tag
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # without stuffed bytes and restart markers
EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(Exception):  # noqa: N818  the message is one reason, not a whole error
    """A picture cannot be read; the message is the reason, such as `empty file`."""


@contextmanager
def strict_pillow_warnings() -> Iterator[None]:
    """Turn Pillow's decompression-bomb warning into an error, and ignore its other warnings, such as odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def open_image_file(path: str) -> BinaryIO:
    """Open a regular file of at most `MAX_BYTES`, without blocking on a pipe or a device.

    Raises:
        UnreadableImage: the file is missing, not permitted, not a regular file, empty or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UnreadableImage(error.strerror or "the file cannot be opened") from error
    file = os.fdopen(descriptor, "rb")
    facts = os.fstat(descriptor)
    reason = ""
    if not stat.S_ISREG(facts.st_mode):
        reason = "not a regular file"
    elif not facts.st_size:
        reason = "empty file"
    elif facts.st_size > MAX_BYTES:
        reason = f"{facts.st_size / 1e6:.0f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB"
    if reason:
        file.close()
        raise UnreadableImage(reason)
    return file


def detect_format(head: bytes) -> str:
    """The image format by a file's first 16 bytes; "" if it is not a supported one.

    HEIC and AVIF are named even if their decoder is not installed; see `can_read`.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":
        return "BMP"
    if head[4:8] == b"ftyp":
        return "AVIF" if head[8:12] in AVIF_BRANDS else "HEIC" if head[8:12] in HEIC_BRANDS else ""
    return ""


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be decoded: `FORMATS`, and AVIF and HEIC if their decoders exist."""
    found = [*FORMATS]
    if features.check("avif"):
        found.append("AVIF")
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
        pillow_heif.options.DECODE_THREADS = 1  # one picture per worker
        found.append("HEIF")
    return tuple(found)


def can_read(kind: str) -> bool:
    """Whether a format that `detect_format` names can be decoded."""
    return {"AVIF": "AVIF", "HEIC": "HEIF"}.get(kind, "PNG") in formats()


def describe_error(error: Exception, file: BinaryIO | None = None) -> str:
    """Why a picture cannot be decoded: one line, the same on every machine.

    Args:
        error: the exception of the decoder.
        file: the picture, to name its format.
    """
    if isinstance(error, UnreadableImage):
        return str(error)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"decompression bomb: far more than {MAX_PIXELS / 1e6:.0f} megapixels, the limit"
    kind = ""
    if file is not None:
        file.seek(0)
        kind = detect_format(file.read(16))
    if isinstance(error, Image.UnidentifiedImageError):
        if kind and not can_read(kind):
            return f"{kind}, which is not supported without {CURES[HEIC if kind == 'HEIC' else AVIF]}"
        return f"damaged {kind}" if kind else f"not a {SUPPORTED}"
    lines = str(error).strip().splitlines()
    return f"damaged {kind or 'picture'}: {lines[0] if lines else type(error).__name__}"


def read_header(file: BinaryIO) -> ImageSummary:
    """A picture's size, and whether it is in colour, from its header.

    Raises:
        Exception: any error of the decoder; `describe_error` turns it into a reason.
    """
    with Image.open(file, formats=formats()) as picture:
        deep = picture.mode == "I" or picture.mode.startswith("I;")
        return ImageSummary.of_size(*picture.size, _is_colour(picture), deep)


def _is_colour(picture: Image.Image) -> bool:
    if picture.mode in GREY:
        return False
    palette = picture.palette
    if picture.mode not in ("P", "PA") or palette is None or not palette.palette:
        return True
    layout = palette.rawmode or palette.mode  # "RGB", "BGRX", or "RGB;L" with one plane after another
    width = len(layout.partition(";")[0])
    entries = np.frombuffer(bytes(palette.palette)[: len(palette.palette) // width * width], np.uint8)
    entries = entries.reshape(width, -1).T if layout.endswith(";L") else entries.reshape(-1, width)
    return bool((entries[:, :3] != entries[:, :1]).any())


def decode(file: BinaryIO, spec: ImageSpec, accept: tuple[str, ...] = ()) -> np.ndarray:
    """Decode a picture to the dataset's shape: (side, side, C) uint8.

    Args:
        file: the picture.
        spec: the shape.
        accept: Pillow's names of the accepted formats; empty: all that can be decoded.

    Raises:
        Exception: any error of the decoder; `describe_error` turns it into a reason.
    """
    with Image.open(file, formats=accept or formats()) as picture:
        width, height = picture.size
        limit = MAX_PIXELS // 2 if picture.format == "WEBP" else MAX_PIXELS  # the WebP decoder keeps three copies
        if width * height > limit:
            text = f"{width} x {height} = {width * height / 1e6:.0f} megapixels"
            raise UnreadableImage(f"decompression bomb: {text}; the limit is {limit / 1e6:.0f}")
        if picture.format in ("JPEG", "MPO") and _has_too_many_scans(file):
            raise UnreadableImage(f"a JPEG of more than {MAX_SCANS} scans")
        _check_file_size(picture, file)
        picture.draft(None, (2 * spec.side, 2 * spec.side))  # has an effect only on a larger JPEG
        picture.load()
        transpose = EXIF_TRANSPOSE.get(_exif_orientation(picture))
        return fit(picture, spec, transpose)


def _has_too_many_scans(file: BinaryIO) -> bool:
    """Whether the first picture of a JPEG file has more than `MAX_SCANS` scans; the file's position is kept."""
    position = file.tell()
    file.seek(0)
    data = file.read(MAX_BYTES)
    file.seek(position)
    if data.count(b"\xff\xda") <= MAX_SCANS:  # almost every file; the marker also occurs by chance in metadata
        return False
    scans, at = 0, 2
    while scans <= MAX_SCANS and (found := JPEG_MARKER.search(data, at)):
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:  # end of the picture; a phone appends a video
            break
        scans += marker == 0xDA
        if marker not in (0x01, 0xD8):  # all other markers have a length
            at += int.from_bytes(data[at : at + 2], "big")
    return scans > MAX_SCANS


def _check_file_size(picture: Image.Image, file: BinaryIO) -> None:
    """Compare the declared size of a PNG, or of an uncompressed TIFF or BMP, with its file, before allocating."""
    bits = 1 if picture.mode in ("1", "P") else 8 * len(picture.getbands())
    needed = picture.size[0] * picture.size[1] * bits // 8
    size = file.seek(0, os.SEEK_END)
    raw = picture.format in ("TIFF", "BMP") and picture.info.get("compression", 0) in ("raw", 0)
    most = size * MAX_DEFLATE if picture.format == "PNG" else size if raw else needed
    if needed > most:
        width, height = picture.size
        raise UnreadableImage(f"damaged {picture.format}: {width} x {height} pixels do not fit into its {size:,} bytes")


def decode_for_dataset(file: BinaryIO, facts: DataSpec) -> np.ndarray:
    """Decode a user's picture like the records of a dataset: (H, W, C) uint8, grey levels 0..K-1.

    Size, channels, crop, padding and bits are those with which the dataset was prepared.

    Raises:
        UnreadableImage: the picture cannot be read; the message is the reason.
    """
    C, H, _ = facts.shape
    if (kind := detect_format(file.read(16))) in ("AVIF", "HEIC"):  # a server uses no more decoders than necessary
        raise UnreadableImage(f"{kind} is not accepted: convert the picture to PNG or JPEG")
    file.seek(0)
    try:
        spec = ImageSpec(H, C, bits=facts.bits, crop="random" if facts.strip else facts.crop)
        image = decode(file, spec, FORMATS)
    except Exception as error:
        raise UnreadableImage(describe_error(error, file)) from error
    if facts.strip:
        image = strips.center_square(image, facts.strip)
    return np.rint(image.astype(np.float64) * (((facts.levels or 256) - 1) / 255)).astype(np.uint8)


def _exif_orientation(picture: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if it is absent or unreadable. Pillow itself rotates TIFF."""
    if "exif" not in picture.info and "Raw profile type exif" not in picture.info:
        return 1
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1


def fit(picture: Image.Image, spec: ImageSpec, transpose: Image.Transpose | None = None) -> np.ndarray:
    """Convert, resize, crop and rotate a decoded picture to the dataset's shape: (side, side, C) uint8.

    With random crops the long side remains, up to `strips.LENGTH` sides.
    """
    picture = _to_grey_or_rgb(picture, spec.bits)
    if spec.channels == 1 and picture.mode != "L":
        picture = picture.convert("L")
    if picture.size != (spec.side, spec.side):
        picture = _pad(picture, spec.side) if spec.crop == "none" else _crop(picture, spec)
    if transpose is not None:
        picture = picture.transpose(transpose)
    if spec.channels == 3 and picture.mode != "RGB":
        picture = picture.convert("RGB")
    pixels = np.asarray(picture).reshape(picture.height, picture.width, spec.channels)
    return pixels if spec.levels == 256 else np.minimum(pixels, spec.levels - 1)  # bicubic resampling overshoots


def _crop(picture: Image.Image, spec: ImageSpec) -> Image.Image:
    """Resize the short side to the target side, and crop the long side to it, or to a strip."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    kept = min(round(spec.side * long / short), strips.LENGTH * spec.side) if spec.crop == "random" else spec.side
    part = min(short * kept / spec.side, long)  # of the long side, in pixels of the picture
    across, down = (part, short) if width >= height else (short, part)
    size = (kept, spec.side) if width >= height else (spec.side, kept)
    left, top = (width - across) / 2, (height - down) / 2
    box = (left, top, left + across, top + down)
    return picture.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _pad(picture: Image.Image, side: int) -> Image.Image:
    """Resize the long side to the target side, and pad to a square with the median colour of the edges there.

    One colour continues a document's white and a scan's black. Repeated edge pixels would be streaks, which a model
    learns to draw.
    """
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    pixels = np.asarray(picture)
    edges = pixels[[0, -1]] if width > height else pixels[:, [0, -1]]
    median = np.rint(np.median(edges.reshape(2 * max(width, height), -1), axis=0)).astype(int).tolist()
    square = Image.new(picture.mode, (side, side), tuple(median) if len(median) > 1 else median[0])
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def _to_grey_or_rgb(picture: Image.Image, bits: int) -> Image.Image:
    """Convert to mode "L" or "RGB", with transparency composited on white."""
    if picture.mode in ("L", "RGB") and "transparency" not in picture.info:
        return picture
    if picture.mode in GREY and picture.mode not in ("1", "L", "LA", "La"):
        return Image.fromarray(_to_8_bits(np.asarray(picture), bits))
    if picture.has_transparency_data:
        pixels = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(pixels, mask=pixels.getchannel("A"))
        return white
    return picture.convert("L" if picture.mode in GREY else "RGB")


def _to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Convert grey levels of `bits` bits, or fractions of 1, to bytes."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f" and not 0 <= low <= high <= 1:
        raise UnreadableImage(f"floating-point grey from {low:g} to {high:g}: only 0 to 1 has a known scale")
    if not 0 <= low <= high <= 65535:
        raise UnreadableImage(f"grey levels from {low:g} to {high:g}: only 8 and 16 bits have a known scale")
    if values.dtype.kind != "f" and high >= 2**bits:
        raise UnreadableImage(f"grey levels up to {high:g} need more than {bits} bits")
    factor = np.float32(255 if values.dtype.kind == "f" else 255 / (2**bits - 1))
    bytes_ = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), 64):  # in bands of 64 rows: floats take four times the memory
        bytes_[start : start + 64] = np.rint(values[start : start + 64] * factor)
    return bytes_


def has_scale(low: float, high: float) -> bool:
    """Whether `to_levels` can map values from `low` to `high` to bytes."""
    return low >= -1 and (high <= 1 or (low >= 0 and high <= 65535))


def to_levels(values: np.ndarray, low: float, high: float, bits: int = 16) -> np.ndarray:
    """Map an array's values to bytes, by the range `low` to `high` of all values of the source.

    Bytes stay as they are. Ranges 0 to 1 and -1 to 1 are scaled to 0..255, values up to 255 are rounded, and values up
    to 65535 are divided by 257, or by (2^bits - 1)/255 if they have fewer than 16 bits.

    Raises:
        UnreadableImage: the record holds NaN or infinity.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UnreadableImage("holds NaN or infinity")
    if high <= 1:
        values = values * 255.0 if low >= 0 else (values + 1.0) * 127.5
    elif high > 255 or bits < 16:
        values = values / ((2**bits - 1) / 255)
    return np.rint(values).astype(np.uint8)


def fit_array(values: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Convert an array (H, W) or (H, W, 1|2|3|4) uint8 to the dataset's shape: (side, side, C) uint8."""
    values = values.reshape(*values.shape[:2], -1)
    if values.shape == (spec.side, spec.side, spec.channels):
        return values
    return fit(Image.fromarray(values.squeeze(2) if values.shape[2] == 1 else values), spec)
