"""Bits per dimension, and the likelihoods of simple baselines."""

import math

import numpy as np
import pytest
from support.trained_run import trained_run

from genflow.evaluation.features.extractor import DataSplits
from genflow.evaluation.metrics import likelihood
from genflow.sampling.engine import Engine


def test_independent_pixels_cost_their_entropy():
    """A pixel that is a fair coin costs one bit and a constant pixel none: half a bit on average."""
    rng = np.random.default_rng(0)
    train, held_out = (np.stack([rng.integers(0, 2, 20_000), np.full(20_000, 3)], 1) for _ in range(2))
    assert likelihood.independent(train, held_out, 4) == pytest.approx(0.5, abs=1e-3)


def test_an_unseen_level_has_a_finite_cost():
    """A total count of one is spread over the levels, so an unseen level costs log2 (K (n + 1)) bits."""
    assert likelihood.independent(np.zeros((7, 1), int), np.ones((1, 1), int), 4) == pytest.approx(math.log2(4 * 8))


def test_the_number_is_the_mean_over_records_with_its_error(store, prepared):
    """The value is reproducible, and its interval and errors are consistent."""
    data = prepared("digits", val=0.2)
    engine = Engine.load(trained_run(store, data, "vae", steps=5))
    real = DataSplits.of(data)
    found = likelihood.likelihood(engine, data, real, 70, 0, lambda count: None)
    again = likelihood.likelihood(engine, data, real, 70, 0, lambda count: None)
    assert found == again
    assert found["kind"] == "lower-bound"
    assert found["method"] == "ELBO, mixture prior"
    assert found["n"] == 70
    assert found["bars"]["levels"] == pytest.approx(math.log2(17))
    assert found["low"] < found["value"] < found["high"]
    assert 0 < found["method_stderr"] < found["stderr"]


def test_points_are_measured_in_nats_and_compared_with_the_truth(store, prepared):
    """For a density in the plane, the baseline is the conditional log-density of the truth given the label."""
    data = prepared("ring8", samples=900, val=0.3)
    engine = Engine.load(trained_run(store, data, "flow_matching", steps=2))
    found = likelihood.likelihood(engine, data, DataSplits.of(data), 16, 0, lambda count: None)
    entropy = math.log(2 * math.pi * math.e * 0.02**2)  # the entropy of one mode, because the label determines the mode
    assert found["unit"] == "nats"
    assert found["bars"]["truth"] == pytest.approx(entropy, abs=0.2)
