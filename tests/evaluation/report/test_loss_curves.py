"""Warnings about loss curves: problems are reported, normal curves are not."""

import numpy as np
import pytest

from genflow.evaluation.report.loss_curves import warnings


def said(values) -> str:
    return " ".join(warnings({"train/loss": list(enumerate(np.asarray(values, float)))}))


def noisy(values, seed=0):
    return np.asarray(values) + 0.02 * np.random.default_rng(seed).standard_normal(len(values))


X = np.linspace(0, 1, 400)


@pytest.mark.parametrize("seed", range(5))
def test_a_converged_loss_has_no_warning(seed):
    """A noisy exponential decay gives no warning."""
    assert said(noisy(np.exp(-10 * X), seed)) == ""


def test_a_loss_that_still_decreases_is_reported():
    """A straight line downwards is reported as still decreasing."""
    assert said(noisy(1 - X)) == (
        "The loss was still decreasing at the end: longer training may improve the model."
    )


def test_a_loss_that_increases_again_is_reported():
    """A parabola has its minimum at 45 % of the training, in the fifth of ten parts."""
    assert said(noisy((2 * (X - 0.45)) ** 2)) == "The loss increased again after 50 % of the training."


def test_spikes_are_reported():
    """One late value far above its neighbours is a spike."""
    values = noisy(np.exp(-10 * X))
    values[350] = 3.0
    assert "spikes in the second half of the training, up to 3.0" in said(values)


def test_values_that_are_not_finite_are_reported_for_two_players():
    """Losses of a game need not decrease, so only values that are not finite are reported."""
    falls = [(i, 1 - i / 100) for i in range(100)]
    messages = warnings({"train/loss_a": falls, "train/loss_b": [*falls, (100, float("nan"))]})
    assert messages == ["Loss_b was NaN or infinite in 1 of 101 records."]
