"""Decoding of common and rare image files; damaged and hostile files give a reason."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.data import images
from genflow.data.images import (
    MAX_PIXELS,
    SUPPORTED,
    UnreadableImage,
    decode,
    describe_error,
    fit_array,
    has_scale,
    read_header,
    strict_pillow_warnings,
    to_levels,
)
from genflow.data.sources.base import ImageSpec

GREY, COLOUR = ImageSpec(8, 1), ImageSpec(8, 3)


def encoded(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def ramp(size: int = 8) -> np.ndarray:
    """A colour picture whose corners differ."""
    y, x = np.mgrid[0:size, 0:size] * (255 // (size - 1))
    return np.stack([x, y, 255 - x], -1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_formats(kind: str) -> None:
    """Every format decodes to the saved picture; JPEG approximately."""
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(kind, {})
    pixels = decode(encoded(Image.fromarray(ramp()), kind, **options), COLOUR)
    tolerance = {"JPEG": 12, "GIF": 0}.get(kind, 0)
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels.astype(int) - ramp()).max() <= tolerance


def test_transparency_is_composited_on_white() -> None:
    """In every mode with transparency, a transparent pixel becomes white, and a half-transparent black one grey."""
    rgba = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    rgba.putpixel((0, 0), (0, 0, 0, 0))
    for image in (rgba, rgba.convert("LA")):
        pixels = decode(encoded(image, "PNG"), GREY)
        assert pixels[0, 0, 0] == 255
        assert pixels[4, 4, 0] == 127
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putpixel((0, 0), 0)
    pixels = decode(encoded(palette, "PNG", transparency=0), COLOUR)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[4, 4].tolist() == [200, 0, 0]
    keyed = decode(encoded(Image.new("RGB", (8, 8), (9, 9, 9)), "PNG", transparency=(9, 9, 9)), COLOUR)
    assert (keyed == 255).all()


def test_sixteen_bits() -> None:
    """16-bit grey of either byte order is divided by 257, so 65535 is white."""
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        assert (decode(encoded(Image.fromarray(values), kind), GREY)[:, :, 0] == expected).all()
    big_endian = encoded(Image.frombytes("I;16B", (8, 8), values.astype(">u2").tobytes()), "TIFF")
    assert (decode(big_endian, GREY)[:, :, 0] == expected).all()


def test_float_and_wide_tiff() -> None:
    """Fractions are scaled to 0..255; values of an unknown scale are an error."""
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert (decode(encoded(Image.fromarray(values), "TIFF"), GREY)[:, :, 0] == np.rint(values * 255)).all()
    for wrong in (values * 1e6, (values * 1e6).astype(np.int32)):
        with pytest.raises(UnreadableImage, match="known scale"):
            decode(encoded(Image.fromarray(wrong), "TIFF"), GREY)


def test_one_bit_and_cmyk() -> None:
    """Black and white are 0 and 255; CMYK without ink is white."""
    bits = Image.new("1", (8, 8), 1)
    bits.putpixel((0, 0), 0)
    pixels = decode(encoded(bits, "PNG"), GREY)[:, :, 0]
    assert (pixels[0, 0], pixels[4, 4]) == (0, 255)
    assert (decode(encoded(Image.new("CMYK", (8, 8)), "JPEG"), COLOUR) >= 254).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    """The EXIF orientation is applied as `ImageOps.exif_transpose` does."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(kind, {})
    file = encoded(Image.fromarray(ramp()), kind, exif=exif.tobytes(), **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue()))).convert("RGB"))
    assert (decode(file, COLOUR) == upright).all()


def test_centre_crop() -> None:
    """The centre square of a picture is kept, with the full short side."""
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = ramp()
    assert (decode(encoded(Image.fromarray(wide), "PNG"), COLOUR) == ramp()).all()
    assert (decode(encoded(Image.fromarray(wide.transpose(1, 0, 2)), "PNG"), COLOUR)[:, :, 0] > 0).any()


def test_resizing_is_antialiased() -> None:
    """A fine black-and-white checkerboard shrinks to uniform grey, not to a pattern."""
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = decode(encoded(Image.fromarray(board), "PNG"), GREY)
    assert np.abs(pixels.astype(int) - 127.5).max() <= 2


def test_large_jpeg_is_reduced_while_decoding() -> None:
    """A JPEG that is decoded at reduced scale differs from a full decode by at most 6 of 255 levels."""
    smooth = Image.fromarray(ramp(32)).resize((640, 640), Image.Resampling.BICUBIC)
    jpeg, png = encoded(smooth, "JPEG", quality=98), encoded(smooth, "PNG")
    assert np.abs(decode(jpeg, COLOUR).astype(int) - decode(png, COLOUR)).max() <= 6


def test_grey_in_a_colour_dataset_and_back() -> None:
    """Grey becomes three equal channels; colour becomes ITU-R 601 luma."""
    grey = decode(encoded(Image.new("L", (8, 8), 77), "PNG"), COLOUR)
    assert (grey == 77).all()
    red = decode(encoded(Image.new("RGB", (8, 8), (255, 0, 0)), "PNG"), GREY)
    assert (red == 76).all()


def test_first_frame() -> None:
    """The first frame of an animation is used."""
    frames = [Image.new("L", (8, 8), level) for level in (10, 200, 250)]
    for kind in ("GIF", "PNG", "TIFF"):
        file = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert (decode(file, GREY) == 10).all()


@pytest.mark.parametrize(
    ("mode", "colour"), [("1", False), ("L", False), ("LA", False), ("RGB", True), ("RGBA", True), ("P", True)]
)
def test_survey_sees_colour_by_mode(mode: str, colour: bool) -> None:
    """The mode of a picture decides whether it is in colour."""
    found = read_header(encoded(Image.fromarray(ramp()).convert(mode), "PNG"))
    assert (found.size, found.colour) == ((8, 8), colour)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_survey_sees_grey_palettes(kind: str) -> None:
    """A palette of only greys is grey; a palette with a colour is colour."""
    image = Image.new("P", (8, 8), 1)
    image.putpalette([v for level in range(256) for v in (255 - level,) * 3])
    assert not read_header(encoded(image, kind)).colour
    image.putpalette([v for level in range(256) for v in (255 - level, 3, 3)])
    assert read_header(encoded(image, kind)).colour


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated(kind: str) -> None:
    """Half a file gives a one-line reason, in every format."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    whole = encoded(Image.fromarray(noise), kind).getvalue()
    half = io.BytesIO(whole[: len(whole) // 2])
    with strict_pillow_warnings(), pytest.raises(Exception) as caught:  # noqa: PT011  decoders raise many types
        decode(half, COLOUR)
    text = describe_error(caught.value, half)
    assert text
    assert "\n" not in text
    assert "0x" not in text  # no memory addresses: the list of bad files is the same in every run


def bomb(width: int, height: int) -> io.BytesIO:
    """A small PNG file whose header claims a huge size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 100_000)
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


@pytest.mark.parametrize("size", [(8193, 8192), (10_000, 10_000), (50_000, 50_000)])
def test_bomb(size: tuple[int, int]) -> None:
    """A header with more pixels than the limit is rejected as a decompression bomb."""
    assert size[0] * size[1] > MAX_PIXELS
    with strict_pillow_warnings(), pytest.raises(Exception, match=r".") as caught:
        decode(bomb(*size), COLOUR)
    assert describe_error(caught.value).startswith("decompression bomb")


def test_other_formats_are_rejected() -> None:
    """A format that is not on the list is rejected, even if Pillow can decode it."""
    for kind in ("PPM", "TGA", "ICO", "PCX"):
        file = encoded(Image.new("RGB", (16, 16)), kind)
        with pytest.raises(Image.UnidentifiedImageError) as caught:
            decode(file, COLOUR)
        assert describe_error(caught.value, file) == f"not a {SUPPORTED}"


def test_open_image_file_never_blocks(tmp_path: Path) -> None:
    """A pipe without a writer, a device, an empty file and a missing file are rejected without blocking."""
    import os

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    for path, text in {
        str(tmp_path / "pipe.png"): "not a regular file",
        "/dev/zero": "not a regular file",
        str(tmp_path / "empty.png"): "empty file",
        str(tmp_path / "none.png"): "No such file",
    }.items():
        with pytest.raises(UnreadableImage, match=text):
            images.open_image_file(path)


@pytest.mark.parametrize(
    ("values", "low", "high", "expected"),
    [
        (np.array([0.0, 0.5, 1.0]), 0, 1, [0, 128, 255]),
        (np.array([-1.0, 0.0, 1.0]), -1, 1, [0, 128, 255]),
        (np.array([0.0, 17.4, 255.0]), 0, 255, [0, 17, 255]),
        (np.array([0, 257, 65535], np.uint16), 0, 65535, [0, 1, 255]),
        (np.array([False, True]), 0, 1, [0, 255]),
        (np.array([0, 7, 255], np.int64), 0, 255, [0, 7, 255]),
        (np.array([0, 1], np.uint8), 0, 1, [0, 1]),
    ],
)
def test_levels(values: np.ndarray, low: float, high: float, expected: list[int]) -> None:
    """Values become bytes by the range of all values of the source."""
    assert to_levels(values, low, high).tolist() == expected


def test_ranges_without_a_scale() -> None:
    """A range other than the known ones is not accepted, and NaN is an error."""
    assert not has_scale(-5, 3)
    assert not has_scale(0, 1e6)
    with pytest.raises(UnreadableImage, match="NaN"):
        to_levels(np.array([np.nan, 1.0]), 0, 1)


def test_levels_are_kept_when_resizing() -> None:
    """With K = 17 grey levels, resizing never produces a level above 16."""
    image = (np.indices((8, 8)).sum(0) % 2 * 16).astype(np.uint8)
    assert fit_array(image, ImageSpec(13, 1, levels=17)).max() <= 16


def test_a_jpeg_of_many_scans_is_rejected() -> None:
    """Each empty scan of a progressive JPEG costs a pass over all pixels, so their number is bounded."""
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    start = data.rindex(b"\xff\xda")
    few, many = (io.BytesIO(data[:-2] + data[start:-2] * copies + data[-2:]) for copies in (50, 5000))
    assert images.decode(few, ImageSpec(8, 1)).shape == (8, 8, 1)
    with pytest.raises(images.UnreadableImage, match="a JPEG of more than 100 scans"):
        images.decode(many, ImageSpec(8, 1))
    video = io.BytesIO(data + b"\xff\xda" * 200)  # a phone appends its video to the picture
    assert images.decode(video, ImageSpec(8, 1)).shape == (8, 8, 1)


def test_whole_pictures_are_padded() -> None:
    """Without a crop, the whole picture is in the square, and the bars have the median colour of its edges."""
    for colour in ((250, 250, 250), (9, 5, 2)):
        image = Image.new("RGB", (64, 32), colour)
        image.paste((200, 30, 40), (8, 8, 56, 24))
        for picture in (image, image.transpose(Image.Transpose.ROTATE_90)):
            pixels = decode(encoded(picture, "PNG"), ImageSpec(32, 3, crop="none"))
            bars = pixels if picture is image else pixels.transpose(1, 0, 2)
            assert bars.shape == (32, 32, 3)
            assert (bars[:8] == colour).all()
            assert (bars[24:] == colour).all()
            assert (bars[14:18, 6:26] == (200, 30, 40)).all()


def test_a_strip_keeps_the_long_side() -> None:
    """For random crops a picture keeps its shape, up to two sides; a longer one loses its ends."""
    for size, shape in {(40, 20): (10, 20), (20, 30): (15, 10), (20, 20): (10, 10), (100, 20): (10, 20)}.items():
        found = decode(encoded(Image.new("L", size, 7), "PNG"), ImageSpec(10, 1, crop="random"))
        assert found.shape == (*shape, 1)
