"""The Fréchet distance compared with closed forms."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from genflow.evaluation.metrics.frechet import Gaussian, frechet


def exact(mean: np.ndarray, covariance: np.ndarray, n: int = 200, seed: int = 0) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly the given ones."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_diagonal_gaussians_have_the_distance_of_their_standard_deviations():
    """d^2 = |mu_1 - mu_2|^2 + sum (sigma_1 - sigma_2)^2 where the covariances commute."""
    a = exact(np.array([0.0, 1.0]), np.diag([4.0, 1.0]))
    b = exact(np.array([3.0, 1.0]), np.diag([1.0, 9.0]), seed=1)
    assert Gaussian(a).distance(b) == pytest.approx(9 + 1 + 4)


def test_general_gaussians_agree_with_the_matrix_root():
    """For covariances that do not commute, the trace agrees with scipy's matrix square root."""
    rng = np.random.default_rng(2)
    S1, S2 = (m @ m.T + 0.1 * np.eye(5) for m in rng.standard_normal((2, 5, 5)))
    m1, m2 = rng.standard_normal((2, 5))
    expected = np.square(m1 - m2).sum() + np.trace(S1 + S2 - 2 * sqrtm(S1 @ S2).real)
    assert Gaussian(exact(m1, S1)).distance(exact(m2, S2, seed=3)) == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_a_set_to_itself_is_zero():
    """The distance is zero up to rounding, even if features are constant or identical."""
    x = np.random.default_rng(4).standard_normal((50, 6))
    x[:, 3], x[:, 4] = 0, x[:, 0]
    assert Gaussian(x).distance(x) == pytest.approx(0, abs=1e-10)


def test_fewer_samples_than_dimensions():
    """With fewer samples than dimensions, the distance agrees with the formula with covariances."""
    rng = np.random.default_rng(5)
    many, few = rng.standard_normal((300, 40)), rng.standard_normal((30, 40))
    S1, S2 = np.cov(few, rowvar=False), np.cov(many, rowvar=False)
    root = sqrtm(S2).real
    cross = np.sqrt(np.linalg.eigvalsh(root @ S1 @ root).clip(min=0)).sum()
    expected = np.square(few.mean(0) - many.mean(0)).sum() + np.trace(S1) + np.trace(S2) - 2 * cross
    assert Gaussian(many).distance(few) == pytest.approx(expected, rel=1e-6)


def test_intervals_cover_what_other_samples_give():
    """About 95 % of the intervals contain the mean over repetitions; more do so close to the reference."""
    rng = np.random.default_rng(6)
    reference = Gaussian(rng.standard_normal((1000, 4)))
    for shift, lowest, highest in ((0.7, 0.88, 1.0), (0.0, 0.94, 1.0)):
        found = [frechet(rng.standard_normal((200, 4)) + shift / 2, reference, 30, seed) for seed in range(100)]
        centre = np.mean([interval.value for interval in found])
        covered = np.mean([interval.low <= centre <= interval.high for interval in found])
        assert lowest <= covered <= highest
