"""The kernel distance is unbiased and agrees with its definition."""

import itertools

import numpy as np
import pytest

from genflow.evaluation.metrics import kid


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """The three means, pair by pair."""
    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    xx = np.mean([k(a, b) for a, b in itertools.permutations(x, 2)])
    yy = np.mean([k(a, b) for a, b in itertools.permutations(y, 2)])
    return float(xx + yy - 2 * np.mean([k(a, b) for a in x for b in y]))


def test_it_agrees_with_its_definition():
    """The vectorized estimate equals the sums over pairs of different rows."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 3)), rng.standard_normal((9, 3)) + 0.5
    assert kid.kid(x, kid.Reference.of(y)).value == pytest.approx(by_definition(x, y), rel=1e-10)


def test_it_is_zero_on_average_for_equal_distributions():
    """The mean over pairs of sets from one distribution is zero within its error, and some values are negative."""
    rng = np.random.default_rng(1)
    values = np.array([
        kid.kid(rng.standard_normal((40, 5)), kid.Reference.of(rng.standard_normal((40, 5))), 2).value
        for _ in range(400)
    ])  # fmt: skip
    assert abs(values.mean()) < 3 * values.std() / 20
    assert values.min() < 0


def test_blocks_stay_unbiased(monkeypatch):
    """The mean of the estimate is the same with blocks of ten as with a single block."""
    rng = np.random.default_rng(2)
    reference = kid.Reference.of(rng.standard_normal((200, 4)))
    sets = [rng.standard_normal((40, 4)) + 0.3 for _ in range(300)]
    whole = np.array([kid.kid(x, reference, 2).value for x in sets])
    monkeypatch.setattr(kid, "BLOCK", 10)
    blocks = np.array([kid.kid(x, reference, 2).value for x in sets])
    error = (whole - blocks).std() / len(sets) ** 0.5
    assert abs(whole.mean() - blocks.mean()) < 3 * error
    assert not np.allclose(whole, blocks)
