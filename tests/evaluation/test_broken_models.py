"""Broken models, simulated with real rows: each error is detected by the metric meant for it."""

import numpy as np
import pytest

from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.evaluation.features import classifier
from genflow.evaluation.features.extractor import load_features
from genflow.evaluation.interval import proportion
from genflow.evaluation.metric_suite import MetricSuite
from genflow.evaluation.metrics.classification import classification
from genflow.evaluation.metrics.memorization import memorization
from genflow.evaluation.report.summary import _copies, _labels, _variety
from genflow.recipe.schema import Data, Evaluate
from genflow.storage.store import Store

N = 300


def quiet(event: str, **fields: object) -> None:
    pass


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Measures records with their requested labels, as `genflow evaluate` does."""
    patch = pytest.MonkeyPatch()
    patch.setattr(classifier, "MAX_STEPS", 60)
    patch.setattr(classifier, "MIN_STEPS", 60)
    store = Store(tmp_path_factory.mktemp("broken"))
    artifact, _ = prepare(store, Data(source="digits", val=0.3), in_process, quiet)
    data = Dataset.open(artifact)
    extractor = load_features(store, data, "classifier", quiet)
    suite = MetricSuite(extractor, Evaluate(samples=N, bootstrap=5))

    def measure(records: np.ndarray, labels: np.ndarray) -> dict:
        features, classes = extractor.embed(records)
        metrics = suite.measure_all(features, labels)
        metrics["agreement"] = proportion(classes == labels).metric(N, extractor.name, extractor.about["accuracy"])
        metrics["classification"] = classification(records, labels, data, extractor).metric(extractor)
        copies = memorization(records, data, extractor.real)
        return {"name": "it", "metrics": metrics, "memorization": copies, "modes": None}

    measure.train, measure.real = data.splits["train"], extractor.real  # type: ignore[attr-defined]
    yield measure
    patch.undo()


def rows(measured, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training rows with their labels."""
    return measured.train.take(which), measured.train.labels[which]


def test_an_honest_model_is_not_accused(measured):
    """Real rows that are not in the reference have metrics near the floor, and the verdict reports no problem."""
    found = measured(*rows(measured, measured.real.floor[-N:]))
    metrics = found["metrics"]
    assert metrics["fd"]["value"] < 2 * metrics["fd"]["floor"]
    assert metrics["classification"]["value"] > 0.85
    assert (_variety([found]), _labels([found])) == ("", "")


def test_a_constant_model_covers_nothing(measured):
    """A model that always draws one plausible picture has almost no recall and coverage."""
    picture, _ = rows(measured, measured.real.floor[:1])
    labels = measured.train.labels[measured.real.floor[:N]]
    metrics = measured(np.repeat(picture, N, 0), labels)["metrics"]
    assert metrics["recall"]["value"] < 0.05
    assert metrics["coverage"]["value"] < 0.1
    assert metrics["fd"]["value"] > 20 * metrics["fd"]["floor"]
    assert metrics["classification"]["value"] < 0.4


def test_a_memorizing_model_is_all_copies(measured):
    """Training rows as samples: fd is close to its floor, and almost every sample is a copy."""
    found = measured(*rows(measured, measured.real.training[:N]))
    assert found["metrics"]["fd"]["value"] < 4 * found["metrics"]["fd"]["floor"]
    assert found["memorization"]["copies"]["value"] > 0.95
    assert "near copies" in _copies([found])


def test_a_model_that_drops_modes_misses_them(measured):
    """Real digits 0 to 3 for every requested class: precision is high, recall and coverage are low."""
    train, floor = measured.train, measured.real.floor
    few = floor[train.labels[floor] < 4]
    found = measured(train.take(np.resize(few, N)), train.labels[floor[:N]])
    metrics = found["metrics"]
    assert metrics["precision"]["value"] > 0.9
    assert metrics["recall"]["high"] < 0.7 * metrics["recall"]["floor"]
    assert metrics["coverage"]["high"] < 0.7 * metrics["coverage"]["floor"]
    assert "missing" in _variety([found])


def test_a_model_that_ignores_labels_teaches_nothing(measured):
    """Real rows with permuted labels: fd and recall are good, agreement and classification are not."""
    records, labels = rows(measured, measured.real.floor[-N:])
    found = measured(records, np.random.default_rng(0).permutation(labels))
    metrics = found["metrics"]
    assert metrics["fd"]["value"] < 2 * metrics["fd"]["floor"]
    assert metrics["recall"]["value"] > 0.9 * metrics["recall"]["floor"]
    assert metrics["agreement"]["value"] < 0.2
    assert metrics["classification"]["value"] < 0.5
    assert "show the requested class" in _labels([found])
