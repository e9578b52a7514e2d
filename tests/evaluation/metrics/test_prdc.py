"""Precision, recall, density and coverage of sets with known values."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from genflow.evaluation.metrics import prdc as module
from genflow.evaluation.metrics.prdc import prdc, radii2, radii2_of_sets


def cloud(centre: float, n: int = 100, seed: int = 0, dims: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dims)) + centre


def test_real_data_against_itself_is_complete():
    """Every point is in its own ball, so precision, recall and coverage are 1."""
    x = cloud(0)
    found = prdc(x, x, repeats=2)
    assert found.precision.value == found.recall.value == found.coverage.value == 1
    assert found.density.value > 1  # a point is in its own ball and in those of its neighbours


def test_samples_far_away_are_neither_plausible_nor_varied():
    """All four metrics are zero for samples far from real data."""
    found = prdc(cloud(100), cloud(0), repeats=2)
    assert found.precision.value == found.recall.value == found.density.value == found.coverage.value == 0


def test_a_dropped_mode_shows_in_recall_and_not_in_precision():
    """Samples of one of two equal modes have high precision, but recall and coverage of 0.5."""
    both = np.concatenate([cloud(0, 50), cloud(100, 50, seed=1)])
    np.random.default_rng(2).shuffle(both)
    found = prdc(cloud(0, seed=3), both, repeats=2)
    assert found.precision.value > 0.9
    assert found.recall.value == pytest.approx(0.5, abs=0.06)
    assert found.coverage.value == pytest.approx(0.5, abs=0.06)


def test_samples_that_crowd_at_the_centre_are_dense_and_lack_recall():
    """A model that shrinks the distribution has density above 1 and low recall."""
    real, x = cloud(0, 300, dims=8), cloud(0, 300, seed=4, dims=8)
    shrunk, honest = prdc(0.6 * x, real, repeats=2), prdc(x, real, repeats=2)
    assert shrunk.density.value > 1.3 > honest.density.value
    assert shrunk.recall.value < 0.6 < honest.recall.value


def test_chunks_change_nothing(monkeypatch):
    """The size of chunks does not change the metrics."""
    x, y = cloud(0, 60), cloud(0.5, 60, 5)
    whole = prdc(x, y, repeats=3)
    monkeypatch.setattr(module, "CHUNK", 7)
    assert prdc(x, y, repeats=3) == whole


def test_the_radius_is_the_distance_to_the_kth_neighbour():
    """On a line of integers the third neighbour of an end point is at distance 3, that of an inner point at 2."""
    x = np.arange(8.0)[:, None]
    assert radii2(x, 3).tolist() == [9, 4, 4, 4, 4, 4, 4, 9]


def test_radii_of_sets_are_those_of_their_rows_alone():
    """Also of a set whose points are not among the nearest neighbours of one another."""
    x = cloud(0, 300)
    far_apart = np.argsort(np.square(x - x[0]).sum(1))[::60]  # none is among the 16 nearest of another
    sets = [np.arange(300), np.arange(0, 300, 2), far_apart, np.array([7])]
    found = radii2_of_sets(x, 2, sets)
    for radii, rows in zip(found, sets, strict=True):
        assert (np.delete(radii, rows) == -1).all()
        if len(rows) > 1:
            np.testing.assert_allclose(radii[rows], radii2(x[rows], 2), rtol=1e-9)
    assert found[3, 7] == 0


def test_both_sets_have_the_same_number_of_points():
    """The larger set is truncated, because recall and coverage depend on the number, and `n` states the number."""
    assert prdc(cloud(0, 80), cloud(0, 30), repeats=2).n == 30


def test_the_metrics_agree_with_a_tree_of_neighbours():
    """The four metrics agree with those computed from scikit-learn's neighbour search."""
    rng = np.random.default_rng(7)
    real, drawn = rng.standard_normal((150, 4)), 1.3 * rng.standard_normal((150, 4)) + 0.4
    real_radii = NearestNeighbors(n_neighbors=6).fit(real).kneighbors(real)[0][:, 5]
    drawn_radii = NearestNeighbors(n_neighbors=6).fit(drawn).kneighbors(drawn)[0][:, 5]
    distances = np.linalg.norm(drawn[:, None] - real, axis=2)
    found = prdc(drawn, real, k=5, repeats=2)
    assert found.precision.value == pytest.approx((distances <= real_radii).any(1).mean())
    assert found.recall.value == pytest.approx((distances <= drawn_radii[:, None]).any(0).mean())
    assert found.density.value == pytest.approx((distances <= real_radii).sum(1).mean() / 5)
    assert found.coverage.value == pytest.approx((distances <= real_radii).any(0).mean())
