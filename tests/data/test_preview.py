"""Drawing of records as PNG."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from genflow.data.preview import BACKGROUND, GAP, describe, grid, preview, render, scatter
from genflow.data.shards import Dataset
from genflow.specs import DataSpec


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_grid_places_pictures_row_by_row() -> None:
    """Picture n is in row n // columns, each pixel enlarged to scale x scale, with a gap around the picture."""
    images = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2, 1) * 10
    sheet = opened(grid(images, columns=3, scale=4))
    assert sheet.shape == (2 * (8 + GAP) + GAP, 3 * (8 + GAP) + GAP)
    top, left = GAP + (8 + GAP), GAP + (8 + GAP)  # picture 4
    assert (sheet[top : top + 4, left : left + 4] == images[4, 0, 0, 0]).all()
    assert (sheet[top + 4 : top + 8, left + 4 : left + 8] == images[4, 1, 1, 0]).all()
    assert (sheet[:GAP] == BACKGROUND).all()
    assert (sheet[top:, left + 8 + GAP :] == BACKGROUND).all()


def test_small_pictures_are_enlarged() -> None:
    """8 x 8 pixels become 64 x 64; large pictures keep their size."""
    assert opened(grid(np.zeros((1, 8, 8, 1), np.uint8))).shape == (64 + 2 * GAP, 64 + 2 * GAP)
    assert opened(grid(np.zeros((1, 100, 100, 3), np.uint8))).shape == (100 + 2 * GAP, 100 + 2 * GAP, 3)


def test_scatter_has_y_upwards() -> None:
    """A point at (+, +) is drawn in the upper right quarter; infinite points are left out."""
    sheet = opened(scatter(np.array([[0.5, 0.5], [np.inf, 0.0]]), limit=1, side=64)).astype(int)
    dark = np.argwhere(sheet.sum(-1) < 600)
    assert len(dark) == 4
    assert (dark[:, 0] < 32).all()
    assert (dark[:, 1] >= 32).all()


def test_render_scales_grey_levels() -> None:
    """Level K - 1 is drawn white."""
    records = np.full((1, 8, 8, 1), 16, np.uint8)
    assert opened(render(records, DataSpec((1, 8, 8), 17)))[GAP + 1, GAP + 1] == 255


def test_preview_has_a_row_per_class(prepared: Callable[..., Dataset]) -> None:
    """Ten digits give ten rows of ten pictures; points give one plot."""
    assert opened(preview(prepared("digits"))).shape == (10 * (64 + GAP) + GAP,) * 2
    assert opened(preview(prepared("moons", samples=500))).shape == (512, 512, 3)


def test_describe(prepared: Callable[..., Dataset]) -> None:
    """The document contains the dataset's id, shards, source and size."""
    dataset = prepared("digits")
    document = describe(dataset)
    assert document["schema"] == "genflow.data/1"
    assert document["dataset"] == dataset.artifact.id
    assert document["shards"] == {"train": 1, "val": 1}
    assert document["source"]["kind"] == "digits"
    assert document["bytes"] > 1797 * 64
