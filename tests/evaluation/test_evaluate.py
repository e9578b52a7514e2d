"""The complete evaluation of a run: the content of its document, and what it depends on."""

import json

import numpy as np
import pytest
from support.trained_run import trained_run

from genflow.errors import UsageError
from genflow.evaluation import evaluate as evaluation
from genflow.evaluation import samples
from genflow.evaluation.features import classifier
from genflow.evaluation.features.extractor import DataSplits
from genflow.evaluation.metrics.modes import count, modes
from genflow.recipe.schema import Evaluate
from genflow.tracking.journal import curves, entries, journal_path

SMALL = Evaluate(samples=120, sweep_samples=60, steps=(1, 2), likelihood=16, bootstrap=5)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Train feature extractors for a few steps only."""
    monkeypatch.setattr(classifier, "MAX_STEPS", 20)
    monkeypatch.setattr(classifier, "MIN_STEPS", 20)


@pytest.fixture
def events():
    return []


@pytest.fixture
def evaluate(store, events):
    """Measure a run and record its events."""
    def run(artifact, data, options=SMALL):
        return evaluation.evaluate(
            store, artifact, data.artifact, options, lambda event, **f: events.append((event, f))
        )

    return run


def test_every_metric_has_its_interval_and_floor(store, prepared, evaluate, events):
    """Each metric has n, features, an interval and a floor; the sweep includes the run's own steps."""
    data = prepared("digits", val=0.2)
    run = trained_run(store, data, "flow_matching", sample={"steps": 2})
    found = evaluate(run, data)

    for metric in found["metrics"].values():
        assert set(metric) == {"value", "low", "high", "n", "features", "floor"}
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert metric["features"] == found["features"]["name"]
    assert list(found["metrics"]) == ["fd", "kid", "precision", "recall", "density", "coverage", "agreement"]
    sections = ["metrics", "likelihood", "straightness", "memorization", "modes", "classes", "speed", "sweep"]
    assert [key for key in found if key in sections] == sections
    assert found["metrics"]["fd"]["n"] == 120
    assert found["metrics"]["fd"]["value"] > found["metrics"]["fd"]["floor"] > 0  # twenty training steps are too few
    curve = [(point["steps"], point["nfe"], point["own"], point["fd"]["n"]) for point in found["sweep"]]
    assert curve == [(1, 1, False, 60), (2, 2, True, 60)]
    assert found["likelihood"]["kind"] == "ode-estimate"
    steps = [fields for event, fields in events if event == "progress" and fields["stage"] == "evaluate"]
    assert steps[-1]["step"] == steps[-1]["steps"]


def test_an_evaluation_is_reused(store, prepared, evaluate):
    """The second call returns the same document, marked as cached; other options give another evaluation."""
    data = prepared("ring8", samples=600, val=0.3)
    run = trained_run(store, data, "vae")
    first, again = evaluate(run, data), evaluate(run, data)
    other = evaluate(run, data, SMALL.model_copy(update={"seed": 1}))
    assert again == {**first, "cached": True}
    assert other["evaluation"] != first["evaluation"]
    assert other["metrics"]["fd"]["value"] != first["metrics"]["fd"]["value"]
    assert evaluation.find(store, run, data.artifact, SMALL) == again


def test_metrics_are_reproducible(store, prepared, evaluate):
    """After deletion, a second measurement gives the same metrics; only times differ."""
    data = prepared("digits", val=0.2)
    run = trained_run(store, data, "vae")
    first = evaluate(run, data)
    store.delete("evaluations", first["evaluation"])
    again = evaluate(run, data)
    assert not again["cached"]
    assert again["metrics"] == first["metrics"]
    assert again["likelihood"] == first["likelihood"]


def test_the_journal_has_the_curve_with_evaluations_as_steps(store, prepared, evaluate):
    """MLflow then plots quality against evaluations; the journal also has the metrics and a grid."""
    data = prepared("ring8", samples=600, val=0.3)
    run = trained_run(store, data, "flow_matching", sample={"sampler": "midpoint", "steps": 2})
    found = evaluate(run, data)
    path = journal_path(store.root, run.id)
    few = found["sweep"][0]["fd"]["n"]
    assert [step for step, _ in curves(path, f"{found['evaluation']}/sweep")[f"sweep/fd_of_{few}_samples"]] == [2, 4]
    quality, fd = curves(path, found["evaluation"]), found["metrics"]["fd"]
    assert quality["quality/fd"] == [(0, pytest.approx(fd["value"], rel=1e-3))], "MLflow draws bars of runs at step 0"
    assert quality["quality/fd_x_floor"] == [(0, pytest.approx(fd["value"] / fd["floor"], rel=1e-3))]
    described = next(entry["description"] for _, entry in entries(path) if "description" in entry)
    assert "times that of real points**" in described["headline"]
    assert described["picture"].endswith("grid.png")
    assert any('"samples/evaluation"' in line for line in path.read_text(encoding="utf-8").splitlines())


def test_the_journal_has_one_fd(store, prepared, evaluate):
    """An evaluation with fewer samples sends its curve and its file, but not another fd of the run."""
    data = prepared("ring8", samples=600, val=0.3)
    run = trained_run(store, data, "vae")
    evaluate(run, data)
    fewer = evaluate(run, data, SMALL.model_copy(update={"samples": 60}))
    path = journal_path(store.root, run.id)
    assert "quality/fd" not in curves(path, fewer["evaluation"])
    more = evaluate(run, data, SMALL.model_copy(update={"samples": 150}))
    fd = more["metrics"]["fd"]["value"]
    assert curves(path, more["evaluation"])["quality/fd"] == [(0, pytest.approx(fd, rel=1e-3))]


def test_settings_that_a_sampler_rejects_are_skipped(store, prepared, evaluate, events):
    """A number of steps outside the family's range emits a note and does not fail."""
    data = prepared("ring8", samples=600, val=0.3)
    run = trained_run(store, data, "flow_matching", sample={"steps": 2})
    found = evaluate(run, data, SMALL.model_copy(update={"steps": (1, 5000)}))
    assert [point["steps"] for point in found["sweep"]] == [1, 2]
    assert any(event == "note" and "5000" in fields["message"] for event, fields in events)


def test_all_runs_share_noise_and_labels(prepared):
    """Seeds do not depend on the number of samples, and the labels are those of the floor's rows."""
    data = prepared("digits", val=0.2)
    real = DataSplits.of(data)
    assert samples.seeds(3, 5) == samples.seeds(3, 9)[:5]
    assert (samples.labels(data, real, 40) == data.splits["train"].labels[real.floor[:40]]).all()


def test_modes_of_the_ring_are_counted(prepared):
    """Points on three of eight modes capture three modes; points between modes have low quality."""
    data = prepared("ring8", samples=600)
    points = np.array([[2.0, 0.0], [0.0, 2.01], [-2.0, 0.03], [0.0, 0.0]], np.float32)
    found = modes(points, data.artifact)
    assert (found["captured"], found["of"]) == (3, 8)
    assert found["high_quality"]["value"] == 0.75
    assert modes(points, prepared("moons", samples=100).artifact) is None


def test_the_divergence_of_modes_has_its_closed_form():
    """Equal shares for modes with weights 3/4 and 1/4 give 1/2 log(2/3) + 1/2 log 2; the true shares give 0."""
    centres, weights = np.array([[0.0, 0.0], [4.0, 0.0]]), np.array([0.75, 0.25])
    half, true = (np.repeat(centres, [n, 100 - n], axis=0) for n in (50, 75))
    assert count(half, centres, 0.1, weights)["kl"]["value"] == pytest.approx(0.5 * np.log(2 / 3) + 0.5 * np.log(2))
    assert count(true, centres, 0.1, weights)["kl"]["value"] == pytest.approx(0, abs=1e-12)
    dropped = count(np.zeros((100, 2)), centres, 0.1, weights)
    assert (dropped["captured"], dropped["kl"]["value"]) == (1, pytest.approx(-np.log(0.75)))


def test_draws_of_the_truth_have_the_divergences_floor():
    """For N points of the true density with M modes, the mean divergence is (M - 1) / (2 N)."""
    rng, centres, weights = np.random.default_rng(0), np.arange(10.0).reshape(5, 2) * 4, np.full(5, 0.2)
    found = [count(centres[rng.integers(0, 5, 400)], centres, 0.1, weights)["kl"] for _ in range(200)]
    assert np.mean([kl["value"] for kl in found]) == pytest.approx(found[0]["floor"], rel=0.2)


def test_the_artifact_lists_its_parents(store, prepared, evaluate):
    """The manifest lists run and dataset as parents, and the files pass verification."""
    data = prepared("ring8", samples=600, val=0.3)
    run = trained_run(store, data, "vae")
    artifact = store.get("evaluations", evaluate(run, data)["evaluation"]).verify()
    assert artifact.manifest["parents"] == [run.id, data.artifact.id]
    assert {"metrics.json", "grid.png", "real.png"} <= set(artifact.manifest["files"])
    assert json.loads(artifact.file("metrics.json").read_text(encoding="utf-8"))["schema"] == "genflow.evaluate/1"


def test_sampling_options_override_those_of_the_run(store, prepared, evaluate):
    """Other sampling options give another evaluation; unknown ones are an error."""
    data = prepared("ring8", samples=600, val=0.3)
    run = trained_run(store, data, "flow_matching", sample={"steps": 2})
    own = evaluate(run, data)

    def measured_with(sample):
        return evaluation.evaluate(store, run, data.artifact, SMALL, lambda event, **fields: None, sample)

    other = measured_with({"sampler": "midpoint", "steps": 3})
    assert (own["nfe"], other["nfe"]) == (2, 6)
    assert other["evaluation"] != own["evaluation"]
    assert measured_with({"sampler": "midpoint", "steps": 3})["cached"]
    with pytest.raises(UsageError, match="stepz"):
        measured_with({"stepz": 3})


def test_guided_samples_have_no_likelihood(store, prepared, evaluate):
    """Guidance changes the distribution, so the likelihood of the model would not describe the samples."""
    data = prepared("digits", val=0.2)
    run = trained_run(store, data, "flow_matching", sample={"steps": 1, "guidance": 2.0})
    assert evaluate(run, data, SMALL.model_copy(update={"steps": ()}))["likelihood"] is None
