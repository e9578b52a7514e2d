"""Memorization metrics for known copies, known held-out rows and known distances."""

import numpy as np
import pytest

from genflow.evaluation.features.extractor import DataSplits
from genflow.evaluation.metrics.memorization import downscale, memorization, neighbours, standouts
from genflow.evaluation.report.summary import _copies


@pytest.fixture
def digits(prepared):
    return prepared("digits", val=0.3)


def test_the_share_of_copies_is_found(digits) -> None:
    """If a quarter of the samples are training rows, `copies` increases accordingly."""
    real = DataSplits.of(digits)
    held_out = digits.splits["val"].take(real.reference[:200])
    mixed = np.concatenate([held_out[:150], digits.splits["train"].take(np.arange(50))])
    found = memorization(mixed, digits, real)
    honest = memorization(held_out[:150], digits, real)
    assert found["copies"]["value"] == pytest.approx(0.25 + 0.75 * honest["copies"]["value"])
    assert found["copies"]["low"] > found["copies"]["floor"]
    assert found["nearest"]["value"] == pytest.approx(0.75 * honest["nearest"]["value"], rel=1e-3)
    assert found["copies"]["n"] == 200


def test_held_out_rows_meet_their_floor(digits) -> None:
    """The rows that define the floor have exactly the floor as value, and the verdict reports no copies."""
    real = DataSplits.of(digits)
    found = memorization(digits.splits["val"].take(real.reference), digits, real)
    assert {name: m["value"] for name, m in found.items()} == {name: m["floor"] for name, m in found.items()}
    assert _copies([{"name": "honest", "memorization": found}]) == ""


def test_blur_is_no_copy(digits) -> None:
    """Means of eight neighbours are closer to training rows than held-out pictures, but are not counted as copies."""
    real, train = DataSplits.of(digits), digits.splits["train"].take(np.arange(len(digits.splits["train"])))
    x = train.reshape(len(train), -1).astype(np.float32)
    near = np.square(x[:60, None] - x).sum(2).argsort(1)[:, 1:9]
    found = memorization(train[near].mean(1).round().astype(np.uint8), digits, real)
    assert found["nearest"]["value"] < 0.9 * found["nearest"]["floor"]
    assert found["copies"]["value"] <= 0.02


def test_distances_in_blocks_are_exact(digits) -> None:
    """Processing training rows in blocks gives the same neighbours as sorting all distances."""
    train = digits.splits["train"]
    x = downscale(digits.splits["val"].take(np.arange(7)), digits.facts)
    every = downscale(train.take(np.arange(len(train))), digits.facts)
    distances = np.sort(np.sqrt(np.square(x[:, None] - every).mean(2)), axis=1)
    nearest, others, rows = neighbours(x, train)
    np.testing.assert_array_equal(rows, np.square(x[:, None] - every).sum(2).argmin(1))
    np.testing.assert_allclose(nearest, distances[:, 0], rtol=1e-4)
    np.testing.assert_allclose(others, distances[:, 1:6].mean(1), rtol=1e-4)


def test_a_copy_is_shown_with_its_original(digits) -> None:
    """Among twenty held-out rows and one copy, the copy comes first, followed by its training row."""
    train = digits.splits["train"]
    mixed = np.concatenate([digits.splits["val"].take(np.arange(20)), train.take(np.array([77]))])
    rows, _ = standouts(mixed, digits, 3)
    assert rows.shape == (6, *mixed.shape[1:])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], train.take(np.array([77]))[0])


def test_points_and_data_without_held_out_rows(prepared) -> None:
    """The result is None for points; without a held-out split the floor is None."""
    points = prepared("ring8", samples=400)
    assert memorization(np.zeros((9, 1, 1, 2), np.float32), points, DataSplits.of(points)) is None
    digits = prepared("digits", val=0)
    found = memorization(digits.splits["train"].take(np.arange(20)), digits, DataSplits.of(digits))
    assert (found["copies"]["value"], found["copies"]["floor"]) == (1, None)
