"""The 2-D densities: their log-densities are correct, and their samples follow them."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from genflow.data.shards import Dataset
from genflow.data.sources.densities import DENSITIES, density
from genflow.data.values import from_x, to_x

NAMES = list(DENSITIES)


def cells(name: str, side: float, count: int) -> tuple[np.ndarray, float]:
    """Midpoints of a fine grid over [-side, side]^2, and a cell's area."""
    step = 2 * side / count
    axis = -side + step * (np.arange(count) + 0.5)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), step**2


@pytest.mark.parametrize("name", NAMES)
def test_integrates_to_one(name: str) -> None:
    """The integral of the density over the plane is 1 (midpoint rule)."""
    side, count = {"ring8": (2.2, 500), "moons": (2.5, 200), "checkerboard": (5, 100)}.get(name, (4.5, 450))
    points, area = cells(name, side, count)
    assert np.exp(density(name).log_density(points)).sum() * area == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_density(name: str) -> None:
    """Counts in coarse cells agree with the integral of the density over them (chi-squared test)."""
    truth, count = density(name), 20_000
    points, _ = truth.sample(np.random.default_rng(0), count)
    own = {"checkerboard": (4, 8, 10), "ring8": (2.2, 11, 50), "moons": (2.2, 11, 20)}
    side, coarse, fine = own.get(name, (5, 10, 60))
    middles, area = cells(name, side, coarse * fine)
    mass = np.exp(truth.log_density(middles)) * area
    edges = np.linspace(-side, side, coarse + 1)
    expected = count * np.histogram2d(middles[:, 0], middles[:, 1], [edges, edges], weights=mass)[0]
    seen = np.histogram2d(points[:, 0], points[:, 1], [edges, edges])[0]
    enough = expected > 5
    chi2 = ((seen - expected)[enough] ** 2 / expected[enough]).sum()
    degrees = enough.sum() - 1
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)
    assert np.isfinite(truth.log_density(points)).all()


@pytest.mark.parametrize("name", NAMES)
def test_entropy(name: str) -> None:
    """The mean of -log p over samples is the entropy, for all densities with a closed form (not the moons)."""
    truth = density(name)
    points, _ = truth.sample(np.random.default_rng(1), 20_000)
    mean = -truth.log_density(points).mean()
    gauss = math.log(2 * math.pi * math.e * truth.sigma**2) if truth.sigma else 0
    known = {"grid25": gauss + math.log(25), "ring8": gauss + math.log(8), "checkerboard": math.log(32)}
    if truth.weights is not None:  # entropy of the choice of a mode, plus that of the Gaussian around it
        known |= {name: gauss - float((truth.weights * np.log(truth.weights)).sum())}
    if name in known:
        assert mean == pytest.approx(known[name], abs=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_prepared(name: str, prepared: Callable[..., Dataset]) -> None:
    """Points are stored with labels and the log-density at the stored float32 values; x has unit scale."""
    dataset = prepared(name, samples=3000)
    facts, split, truth = dataset.facts, dataset.splits["train"], density(name)
    assert facts.shape == (2, 1, 1)
    assert facts.levels is None
    assert facts.splits == {"train": 2700, "val": 300}
    assert facts.sigma_data == pytest.approx(1, abs=0.05)
    points = split.pixels.reshape(-1, 2)
    assert split.log_density is not None
    assert np.array_equal(split.log_density, truth.log_density(points))
    x = to_x(split.pixels, facts)
    assert float(x.std(correction=0)) == pytest.approx(facts.sigma_data, rel=1e-5)
    assert np.allclose(from_x(x, facts), split.pixels, atol=1e-6)
    if truth.modes is not None:
        nearest = ((points[:, None] - truth.modes) ** 2).sum(-1).argmin(1)
        assert not facts.classes or (nearest == split.labels).all()
        assert facts.classes in (0, len(truth.modes))


def test_more_samples_begin_with_the_same(prepared: Callable[..., Dataset]) -> None:
    """Point n is a function of (seed, n): more samples change none, another seed changes all."""
    few, many = prepared("moons", samples=1500, val=0), prepared("moons", samples=5000, val=0)
    other = prepared("moons", samples=1500, val=0, seed=1)
    first = few.splits["train"].pixels
    assert np.array_equal(first, many.splits["train"].pixels[:1500])
    assert not np.isclose(first, other.splits["train"].pixels).any()


def test_edges_of_the_board() -> None:
    """Light squares and points outside the board have density zero."""
    points = np.array([[-3.0, -3.0], [-1.0, -3.0], [3.0, 3.0], [5.0, 5.0], [-1.0, -1.0]])
    assert np.isfinite(density("checkerboard").log_density(points)).tolist() == [True, False, True, False, True]
