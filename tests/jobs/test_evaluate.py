"""The jobs `evaluate` and `compare`: their results, reuse of existing results, and errors."""

from pathlib import Path

import pytest
from support.trained_run import trained_run

from genflow.errors import UsageError
from genflow.evaluation import evaluate as evaluation
from genflow.evaluation import samples
from genflow.evaluation.features import classifier
from genflow.recipe.compose import compose
from genflow.tracking.journal import entries, journal_path
from jobs import compare, evaluate

pytestmark = pytest.mark.usefixtures("without_mlflow")
SMALL = {"evaluate": {"samples": 60, "sweep_samples": 30, "steps": [1], "likelihood": 8, "bootstrap": 3}}


@pytest.fixture
def events():
    return []


@pytest.fixture
def emit(events):
    return lambda event, **fields: events.append((event, fields))


@pytest.fixture
def document(store, prepared, monkeypatch):
    """The document of a job for two runs on points in the plane."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    monkeypatch.setattr(classifier, "MAX_STEPS", 5)
    data = prepared("ring8", samples=400, val=0.3)
    runs = [trained_run(store, data, "vae").id, trained_run(store, data, "flow_matching").id]
    return {"recipe": compose(None, SMALL).model_dump(mode="json"), "inputs": {"runs": runs}}


def test_evaluate_measures_every_run_once(document, emit, monkeypatch):
    """There is one row per run; the second call reuses all evaluations and draws no samples."""
    assert evaluate.find(document) is None
    done = evaluate.main(document, emit)
    assert done["schema"] == "genflow.evaluate/1"
    assert done["runs"] == [row["run"] for row in done["rows"]] == document["inputs"]["runs"]
    assert done["best"] in done["runs"]
    assert not done["cached"]

    monkeypatch.setattr(evaluation, "_measure", lambda *args: pytest.fail("measured again"))
    again = evaluate.main(document, emit)
    assert again["cached"]
    assert again == evaluate.find(document)
    assert evaluate.main({**document, "inputs": {"run": done["runs"][1]}}, emit)["rows"] == again["rows"][1:]


def test_compare_measures_what_is_missing_and_writes_the_report(document, store, emit, events):
    """If one run is evaluated, `compare` measures only the other one; the second call reuses the report.

    The report is a run of MLflow.
    """
    evaluate.main({**document, "inputs": {"runs": document["inputs"]["runs"][:1]}}, emit)
    events.clear()
    done = compare.main(document, emit)
    assert {fields["run"] for event, fields in events if event == "progress"} == {document["inputs"]["runs"][1]}
    assert done["schema"] == "genflow.compare/1"
    assert (Path(done["path"]) / "report.html").stat().st_size > 10_000
    assert (Path(done["path"]) / "compare.json").exists()
    assert not done["cached"]
    journal = [entry for _, entry in entries(journal_path(store.root, done["report"]))]
    (file,) = [entry["artifact"]["file"] for entry in journal if "artifact" in entry]
    assert (store.root / file).name == "report.html"
    (described,) = [entry["description"]["headline"] for entry in journal if "description" in entry]
    assert described.startswith(f"- {done['verdict'][0]}\n")
    again = compare.find(document)
    assert again["cached"]
    assert (again["report"], again["best"]) == (done["report"], done["best"])


def test_compare_finds_what_was_measured_and_else_measures_no_longer_than_training(document, emit, events):
    """Trainings of no time allow an eighth of the samples; a common earlier evaluation is used whatever its size."""
    asked = {**document["recipe"]["evaluate"], "samples": 160, "sweep_samples": 128}
    fitted = {"recipe": {**document["recipe"], "evaluate": asked}, "inputs": {**document["inputs"], "fit": True}}
    done = compare.main(fitted, emit)
    assert {(row["samples"], row["sweep"][0]["fd"]["n"]) for row in done["rows"]} == {(20, 16)}
    (plan,) = (fields["message"] for event, fields in events if event == "note" and "compare" in fields["message"])
    assert "to measure on 20 samples a run" in plan
    assert "--samples 160 measures more" in plan
    assert any("position" in fields for event, fields in events if event == "progress")

    evaluate.main({"recipe": document["recipe"], "inputs": document["inputs"]}, emit)  # 60 samples
    events.clear()
    done = compare.main(fitted, emit)
    assert {row["samples"] for row in done["rows"]} == {60}
    assert [fields["message"] for event, fields in events if event == "note"] == [
        "compare  2 runs, measured before on 60 samples a run"
    ]


def test_runs_of_different_data_are_not_compared(document, emit, store, prepared, events):
    """The error is raised before anything is measured."""
    other = trained_run(store, prepared("moons", samples=400, val=0.3), "vae")
    runs = [document["inputs"]["runs"][0], other.id]
    with pytest.raises(UsageError, match="different data"):
        compare.main({**document, "inputs": {"runs": runs}}, emit)
    assert not events


def test_a_run_that_is_not_there_is_one_line(document, emit):
    """The error lists the existing runs."""
    with pytest.raises(UsageError, match="no run 'nowhere'; there are: "):
        evaluate.main({**document, "inputs": {"runs": ["nowhere"]}}, emit)


@pytest.mark.ray
def test_the_number_of_workers_changes_no_figure(document, emit, store, monkeypatch, ray_local):
    """With samples in four shares, one worker and three workers give metrics that are identical to the bit."""
    monkeypatch.setattr(samples, "SHARE", 16)
    document["inputs"]["runs"] = document["inputs"]["runs"][1:]
    (one,) = evaluate.main(document, emit)["rows"]
    (store.get("evaluations", one["evaluation"]).path / "manifest.json").unlink()  # makes the evaluation invisible
    document["recipe"]["cluster"]["workers"] = 3
    (three,) = evaluate.main(document, emit)["rows"]
    assert not three["cached"]
    assert three["evaluation"] == one["evaluation"]
    for key in ("metrics", "modes", "classes", "likelihood", "nfe"):
        assert three[key] == one[key], key
