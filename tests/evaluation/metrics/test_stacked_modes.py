"""Modes of stacks, counted by an accurate classifier and compared with real stacks."""

import numpy as np
import pytest

from genflow.data.shards import Dataset
from genflow.evaluation.features import classifier
from genflow.evaluation.features.extractor import DataSplits
from genflow.evaluation.metrics import stacked_modes


def quiet(event: str, **fields: object) -> None:
    pass


@pytest.fixture
def stacks(prepared, monkeypatch) -> Dataset:
    """1,500 stacks, 600 of them held out; the classifier is trained for 150 steps."""
    monkeypatch.setattr(classifier, "MAX_STEPS", 150)
    monkeypatch.setattr(classifier, "MIN_STEPS", 150)
    return prepared("stack:digits", samples=1500, val=0.4)


def test_real_stacks_reach_the_ceiling(store, stacks):
    """Held-out rows as samples have the ceiling as value, and the classifier is accurate on them."""
    real = DataSplits.of(stacks)
    found = stacked_modes.measure_modes(store, stacks, real, stacks.splits["val"].take(real.reference[:400]), quiet)
    assert found["reader"]["accuracy"] > 0.9
    assert (found["captured"], found["kl"]["value"]) == (found["ceiling"], found["kl"]["floor"])
    assert found["of"] == 1000
    assert found["ceiling"] == pytest.approx(1000 * (1 - np.exp(-0.4)), rel=0.08)


def test_missing_modes_are_detected(store, stacks):
    """Ten repeated stacks show at most ten modes, the divergence is near log 100, and the classifier is stored once."""
    real = DataSplits.of(stacks)
    few = np.resize(real.reference[:10], 400)
    found = stacked_modes.measure_modes(store, stacks, real, stacks.splits["val"].take(few), quiet)
    assert found["captured"] <= 10
    assert found["interval"][1] <= 10
    assert found["kl"]["value"] == pytest.approx(np.log(100), abs=0.4)
    assert len(store.artifacts("features")) == 1


def test_the_divergence_is_that_of_shares():
    """Samples in two of four equal modes, half in each, have a divergence of log 2."""
    found = stacked_modes.count(np.array([0, 3] * 50), np.full(4, 0.25))
    assert found["kl"]["value"] == pytest.approx(np.log(2))
    assert (found["captured"], found["interval"]) == (2, [2, 2])


def test_the_interval_of_the_count_holds_its_mean():
    """For 300 draws from 200 uneven modes, at least 95 % of the intervals contain the expected number of modes."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(200))
    expected = (1 - (1 - weights) ** 300).sum()
    held = []
    for _ in range(300):
        low, high = stacked_modes.count(rng.choice(200, 300, p=weights), weights)["interval"]
        held.append(low <= expected <= high)
    assert np.mean(held) > 0.95
