"""A user's picture gets the form of the data: that which `prepare` gives to the same file."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genflow.data.images import UnreadableImage, decode_for_dataset
from genflow.data.shards import Dataset
from genflow.specs import DataSpec

SIZES = ((40, 24), (24, 61), (32, 32), (90, 16), (17, 91))


def folder_of_pictures(folder: Path, deep: bool) -> Path:
    """Pictures of several shapes; with `deep`, grey ones of 12 bits in 16."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(SIZES):
        if deep:
            Image.fromarray(rng.integers(0, 4096, (height, width), np.uint16)).save(folder / f"{i}.png")
            continue
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 1 else 1  # the camera was turned
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{'jpg' if i % 2 else 'png'}", exif=exif)
    return folder


@pytest.mark.parametrize(
    ("deep", "options"),
    [
        (False, {}),
        (False, {"crop": "none"}),
        (False, {"crop": "random"}),
        (False, {"channels": 1, "crop": "none"}),
        (True, {}),
        (True, {"bits": 12}),
        (True, {"bits": 12, "crop": "none"}),
    ],
)
def test_a_file_is_decoded_as_prepare_did(
    prepared: Callable[..., Dataset], tmp_path: Path, deep: bool, options: dict[str, Any]
) -> None:
    """Each file of a dataset's folder is decoded to its row, with nothing but the facts that a run's folder holds."""
    folder = folder_of_pictures(tmp_path / "pictures", deep)
    dataset = prepared(folder, size=16, val=0, **options)
    facts = DataSpec.from_json(dataset.facts.to_json())
    split = dataset.splits["train"]
    assert len(split.ids) == len(SIZES)
    for row, name in enumerate(split.ids):
        with open(folder / name, "rb") as file:
            np.testing.assert_array_equal(decode_for_dataset(file, facts), split.take([row])[0], err_msg=name)


def test_padding_holds_for_data_of_squares(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """With `crop=none` a wide picture is padded, although all pictures of the data are square."""
    (tmp_path / "squares").mkdir()
    for i in range(3):
        Image.new("L", (16, 16), 80 * i).save(tmp_path / "squares" / f"{i}.png")
    wide = io.BytesIO()
    pixels = np.full((16, 32), 200, np.uint8)
    pixels[:, :8] = 50  # outside of the central square
    Image.fromarray(pixels).save(wide, "PNG")
    for crop, seen in (("none", True), ("center", False)):
        facts = prepared(tmp_path / "squares", size=16, val=0, crop=crop).facts
        wide.seek(0)
        assert (decode_for_dataset(wide, facts).min() < 60) == seen


def test_values_with_more_bits_than_the_data_are_refused() -> None:
    """A picture whose values do not fit into the data's bits is not read with a wrong scale."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(file, "PNG")
    file.seek(0)
    with pytest.raises(UnreadableImage, match="grey levels up to 5000 need more than 12 bits"):
        decode_for_dataset(file, DataSpec((1, 8, 8), 256, bits=12))
