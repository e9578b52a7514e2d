"""Intervals have the claimed coverage, and halves repeat no sample."""

import numpy as np
import pytest

from genflow.evaluation.interval import Interval, Z, half_sampled, halves, mean, order, over_trainings, proportion


def test_halves_have_half_of_every_stratum_without_repetition():
    """No row is repeated in a half, and each half has five of ten samples of each label."""
    strata = np.repeat([2, 0, 1], 10)
    for half in halves(strata, 20, seed=3):
        assert len(set(half)) == 15
        assert np.bincount(strata[half]).tolist() == [5, 5, 5]


def test_halves_are_a_function_of_their_seed():
    """The same seed gives the same halves, another seed different ones."""
    strata = np.zeros(40)
    assert (halves(strata, 4, 1) == halves(strata, 4, 1)).all()
    assert (halves(strata, 4, 1) != halves(strata, 4, 2)).any()


def test_the_spread_over_halves_is_the_error_of_a_mean():
    """For a mean, half-sampling gives s / sqrt(N), and about 95 % of the intervals contain the true mean."""
    rng, hits, errors = np.random.default_rng(0), [], []
    for seed in range(400):
        x = rng.standard_normal(60)
        found = half_sampled(x.mean(), lambda rows, x=x: x[rows].mean(), halves(np.zeros(60), 50, seed), 60)
        hits.append(found.low <= 0 <= found.high)
        errors.append((found.high - found.low) / 2 / 2.01 * 60**0.5)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.03)
    assert np.mean(errors) == pytest.approx(1, abs=0.03)


def test_fixed_labels_do_not_widen_the_interval():
    """If values depend only on the label, the mean has no error with stratified halves."""
    labels = np.repeat([0, 1], 20)
    x = 10.0 * labels
    loose = half_sampled(x.mean(), lambda rows: x[rows].mean(), halves(np.zeros(40), 50), 40)
    tight = half_sampled(x.mean(), lambda rows: x[rows].mean(), halves(labels, 50), 40)
    assert tight.low == tight.high == 5
    assert loose.high - loose.low > 2


def test_intervals_respect_the_bounds_of_the_metric():
    """An interval does not extend below the smallest possible value of a metric."""
    x = np.random.default_rng(1).standard_normal(20)
    found = half_sampled(0.1, lambda rows: x[rows].mean(), halves(np.zeros(20), 10), 20, bounds=(0.0, 1.0))
    assert found.low == 0
    assert found.high <= 1


def test_a_share_of_all_or_none_is_not_certain():
    """Wilson's interval for ten of ten hits extends below 1, and for none of ten above 0."""
    assert proportion(np.ones(10, bool)).low == pytest.approx(0.722, abs=0.001)
    assert proportion(np.zeros(10, bool)).high == pytest.approx(0.278, abs=0.001)


def test_the_interval_of_a_mean_is_students():
    """Four values 0, 0, 2, 2: 1 -+ 3.182 * 1.1547 / 2."""
    found = mean(np.array([0.0, 0, 2, 2]))
    assert (found.value, found.high) == (1, pytest.approx(1 + 3.182446 * 1.154701 / 2))


def test_equal_means_differ_significantly_in_5_percent_of_draws():
    """The difference of two normal means with equal true values exceeds the combined errors in 5 % of draws."""
    rng = np.random.default_rng(0)
    signs = [order(Interval(a, a - Z, a + Z), Interval(b, b - Z, b + Z)) for a, b in rng.standard_normal((8000, 2))]
    assert np.mean(np.abs(signs)) == pytest.approx(0.05, abs=0.008)


def test_only_the_facing_errors_matter():
    """A large error on the far side changes nothing; on the near side it makes the difference insignificant."""
    low, far, near = Interval(1.0, 0.9, 1.1), Interval(2.0, 1.9, 9.0), Interval(2.0, 0.5, 2.1)
    assert (order(low, far), order(far, low)) == (-1, 1)
    assert (order(low, near), order(near, low)) == (0, 0)


def test_several_trainings_replace_a_trainings_own_interval():
    """One training keeps its interval; two have their mean and Student's t with one degree of freedom."""
    own = {"value": 1.0, "low": 0.5, "high": 1.5}
    assert over_trainings([own]) == Interval(1.0, 0.5, 1.5)
    both = over_trainings([own, {**own, "value": 2.0}])
    assert both.value == 1.5
    assert both.high - both.value == pytest.approx(12.706 * 0.5, rel=1e-3)
