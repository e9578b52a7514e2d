"""Floors: metrics of real rows with the labels of the samples."""

import dataclasses

import numpy as np
import pytest

from genflow.evaluation.features.extractor import load_features
from genflow.evaluation.metric_suite import MetricSuite
from genflow.recipe.schema import Evaluate


@pytest.fixture
def suite(store, prepared):
    """A metric suite for points whose labels are modes."""
    data = prepared("ring8", samples=2000, val=0.2)
    return MetricSuite(load_features(store, data, "classifier", lambda event, **fields: None), Evaluate(bootstrap=3))


def test_floors_have_the_requested_labels(suite):
    """The first set has the rows that define the labels; the others have equal label counts, and no row is repeated."""
    labels = suite.extractor.labels[:150]
    floor = np.arange(len(suite.extractor.labels))[:, None]
    tagged = MetricSuite(dataclasses.replace(suite.extractor, floor=floor), Evaluate())
    sets = [rows[:, 0] for rows in tagged._real(labels)]
    assert len(sets) == 3
    assert sets[0].tolist() == list(range(150))
    for rows in sets:
        assert (np.bincount(suite.extractor.labels[rows], minlength=8) == np.bincount(labels, minlength=8)).all()
    assert len(set(np.concatenate(sets).tolist())) == 450


def test_real_rows_reach_their_floor(suite):
    """For real rows as samples, no metric differs significantly from its floor."""
    n = 200
    found = suite.measure_all(suite.extractor.floor[-n:], suite.extractor.labels[-n:])
    for name in ("kid", "precision", "recall", "coverage"):
        width = found[name]["high"] - found[name]["low"]
        assert abs(found[name]["value"] - found[name]["floor"]) < width + 0.02, name


def test_a_collapsed_model_is_far_from_the_floor(suite):
    """With one of eight modes, recall and coverage are low, and fd is many times its floor."""
    n = 200
    one = suite.extractor.floor[suite.extractor.labels == 3]
    found = suite.measure_all(np.resize(one, (n, 2)), suite.extractor.labels[:n])
    assert found["fd"]["value"] > 20 * found["fd"]["floor"]
    assert found["coverage"]["high"] < 0.3 < found["coverage"]["floor"]
    assert found["recall"]["value"] < 0.3


def test_a_label_with_too_few_rows_has_a_floor(suite):
    """If a label is requested more often than it has real rows, rows of other labels complete the set."""
    rows = np.flatnonzero(suite.extractor.labels == 3)
    labels = np.full(len(rows) + 40, 3)
    (real,) = suite._real(labels)
    assert len(real) == len(labels)
    assert len(np.unique(real, axis=0)) == len(real)
    assert np.isfinite(suite.distance(np.resize(suite.extractor.floor[rows], (len(labels), 2)), labels)["floor"])
