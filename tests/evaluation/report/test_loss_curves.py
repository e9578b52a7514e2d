"""Losses in words: what looks wrong is said, what looks right is not."""

import numpy as np
import pytest

from genflow.evaluation.report.loss_curves import warnings


def said(values) -> str:
    return " ".join(warnings({"train/loss": list(enumerate(np.asarray(values, float)))}))


def noisy(values, seed=0):
    return np.asarray(values) + 0.02 * np.random.default_rng(seed).standard_normal(len(values))


X = np.linspace(0, 1, 400)


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_came_to_rest_has_no_warning(seed):
    """An exponential with noise."""
    assert said(noisy(np.exp(-10 * X), seed)) == ""


def test_a_loss_that_still_falls_is_called_so():
    """A straight line downwards."""
    assert said(noisy(1 - X)) == "The loss was still falling at the end: a longer training may do better."


def test_a_loss_that_rises_again_is_called_so():
    """A parabola with its lowest point at 45 %: in the fifth tenth."""
    assert said(noisy((2 * (X - 0.45)) ** 2)) == "The loss rose again after 50 % of the training."


def test_spikes_are_called_so():
    """One value far above its neighbours, late."""
    values = noisy(np.exp(-10 * X))
    values[350] = 3.0
    assert "spikes in the second half, up to 3.0" in said(values)


def test_what_is_not_finite_is_said_of_two_players_too():
    """And of a game's losses nothing else: they need not fall."""
    falls = [(i, 1 - i / 100) for i in range(100)]
    told = warnings({"train/loss_a": falls, "train/loss_b": [*falls, (100, float("nan"))]})
    assert told == ["Loss_b was not finite 1 times."]
