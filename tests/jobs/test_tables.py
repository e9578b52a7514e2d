"""The tables of a small study of real runs: the document, the page and what is sent to MLflow."""

import json

import pytest
from PIL import Image
from support.trained_run import trained_run

from genflow.errors import GenflowError
from genflow.evaluation import evaluate
from genflow.evaluation.features import classifier
from genflow.recipe.schema import Evaluate
from genflow.tables import formatting
from genflow.tracking import sync
from genflow.tracking.journal_replay import SendResult
from jobs import tables as job

OPTIONS = {"samples": 60, "sweep_samples": 32, "likelihood": 4, "bootstrap": 3}
CLAIM = {"about": "quality", "says": "Flow matching draws better than a VAE", "source": "a test, https://example.org",
         "test": "flow.fd < vae.fd"}  # fmt: skip


@pytest.fixture
def document(store, prepared, monkeypatch):
    """The document of the job: a VAE and flow matching are measured; the second seed of the VAE diverged."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    monkeypatch.setattr(classifier, "MAX_STEPS", 20)
    monkeypatch.setattr(classifier, "MIN_STEPS", 20)
    data = prepared("digits", val=0.2)
    kinds = {"vae": "vae", "flow": "flow_matching"}
    evaluations = {}
    for name, kind in kinds.items():
        run = trained_run(store, data, kind, name=f"{name}-s0")
        steps = (1, 2) if name == "flow" else ()
        options = Evaluate(steps=steps, classification=name == "flow", **OPTIONS)
        found = evaluate.evaluate(store, run, data.artifact, options, lambda event, **f: None)
        evaluations[f"{name}-m0"] = found["evaluation"]
    ring = prepared("ring8", samples=400, val=0.3)
    run = trained_run(store, ring, "vae", name="vae-grid-s0")
    found = evaluate.evaluate(store, run, ring.artifact, Evaluate(steps=(), **OPTIONS), lambda event, **f: None)
    evaluations["vae-grid-m0"] = found["evaluation"]
    study = {
        "seeds": [0, 1], "budget": 0.01, "tolerance": 0.1, "claims": [CLAIM],
        "trials": {"grid": {"of": ["vae"], "share": 0.25}}, "target": 10,
        "runs": {name: {"preset": kind} for name, kind in kinds.items()},
        "rows": {name: {"title": name.upper(), "run": name, "tables": ["steps", "families"]} for name in kinds},
        "command": "genflow tables --data digits --seeds 2",
    }  # fmt: skip
    told = {"stage": "vae-s1", "kind": "NonFinite", "message": "the loss is not finite"}
    failed = {"vae-s1": told, "vae-m1": told}
    return {"study": study, "inputs": {"evaluations": evaluations, "failed": failed}}


def test_tables_report_and_artifacts(document, store, without_mlflow, monkeypatch):
    """Both tables, the verdict and the failure are written; the page is self-contained; the second call is cached."""
    sent = []
    monkeypatch.setattr(sync, "replay", lambda store, run, deadline_s: sent.append(run) or SendResult(1, True, ""))
    made = job.main(document, lambda event, **fields: None)

    assert [table["name"] for table in made["tables"]] == ["steps", "families"]
    assert made["claims"][0]["verdict"] in ("confirmed", "refuted", "undecided")
    assert made["failed"] == [{"stage": "vae-s1", "message": "the loss is not finite", "kind": "NonFinite"}]
    vae = made["methods"]["vae"]["quantities"]
    assert (vae["diverged"]["value"], vae["likelihood"]["kind"]) == (0.5, "lower-bound")
    assert made["methods"]["flow"]["quantities"]["classification"]["floor"] > 0
    (row, _) = made["tables"][1]["rows"]
    assert "1 of 2 trainings diverged" in row["cells"]["stability"]
    for table in made["tables"]:
        assert all(len(line) < 180 for line in formatting.as_text(table).splitlines())

    folder = store.get("reports", made["report"]).path
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "src=\"http" not in page
    assert "<link" not in page
    assert len(page) < 10_000_000
    assert CLAIM["says"] in page
    for title in (
        "From noise to picture", "Interpolation between two samples", "Modes", "Classes", "Settings that differ",
    ):
        assert f"<summary>{title} <small>" in page
    assert page.index("<h2>Claims of textbooks</h2>") < page.index("<table")
    assert Image.open(folder / "poster.png").size == (1200, 675)
    assert "of 8 modes" in page
    assert "<i>genflow</i> <i>tables</i> <i>--data</i> <i>digits</i> <i>--seeds</i> <i>2</i>" in page
    markdown = (folder / "tables.md").read_text(encoding="utf-8")
    assert f"| {CLAIM['says']} |" in markdown
    assert json.loads((folder / "tables.json").read_text(encoding="utf-8"))["report"] == made["report"]
    assert sent == [made["report"]]
    again = job.main(document, lambda event, **fields: None)
    assert again == {**made, "cached": True}


def test_nothing_measured_is_one_line(document, store):
    """If every evaluation failed, the job raises an error in one line."""
    document["inputs"]["evaluations"] = {}
    with pytest.raises(GenflowError, match="nothing was measured"):
        job.main(document, lambda event, **fields: None)
