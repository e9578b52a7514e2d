"""The computed permutation contains every number once, in an order that looks random."""

import numpy as np
import pytest

from genflow.maths.permutation import shuffled


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 4096, 65537])
def test_it_is_a_permutation(n: int) -> None:
    """All positions together give every number once; a position alone gives the same number."""
    whole = shuffled(np.arange(n), n, seed=7)
    assert sorted(whole) == list(range(n))
    assert whole.dtype == np.int64
    for place in {0, n // 2, n - 1}:
        assert shuffled(np.array([place]), n, seed=7)[0] == whole[place]


def test_seeds_give_different_orders() -> None:
    """Different seeds give different orders, even neighbouring seeds."""
    orders = [shuffled(np.arange(1000), 1000, seed) for seed in (0, 1, 2, 2**63 - 1)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).mean() < 0.01


def test_places_are_uniform_and_independent() -> None:
    """Over 20,000 seeds the first element and pairs of neighbours are uniform (chi-squared, 5 standard deviations)."""
    n, seeds = 10, 20_000
    found = np.stack([shuffled(np.arange(n), n, seed * 0x1F3D5B79) for seed in range(seeds)])
    single = np.bincount(found[:, 0], minlength=n)
    pairs = np.bincount(found[:, 3] * n + found[:, 4], minlength=n * n).reshape(n, n)
    assert np.diag(pairs).sum() == 0
    pairs = pairs[~np.eye(n, dtype=bool)]
    for counts in (single, pairs):
        expected = seeds / len(counts)
        statistic, freedom = float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1
        assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


def test_a_large_set_can_be_permuted_in_part() -> None:
    """The first 100,000 positions of 10^15 hold different, uncorrelated numbers from the whole range."""
    n = 10**15
    found = shuffled(np.arange(100_000), n, seed=3)
    assert len(set(found.tolist())) == 100_000
    assert (found >= 0).all()
    assert (found < n).all()
    assert abs(float((found / n).mean()) - 0.5) < 0.01
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
