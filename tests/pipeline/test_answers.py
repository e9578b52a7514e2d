"""A repeated command answers from the store, without PyTorch; whatever decides a result still decides it."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from genflow.evaluation.features import classifier
from genflow.pipeline import answers
from genflow.pipeline.graph import load
from genflow.pipeline.plan import dry_run
from genflow.recipe.files import dump
from genflow.storage.store import Store
from genflow.tracking.journal import journal_path

NET = {"kind": "mlp", "width": 8}
SHORT = {"steps": 3, "batch": 8, "checkpoint_every": 3}
MEASURED = {"samples": 60, "sweep_samples": 30, "steps": [1], "likelihood": 8, "bootstrap": 3}
STAGES = {
    "points": {"job": "prepare", "data": {"source": "ring8", "samples": 400, "val": 0.3}},
    "vae": {"job": "train", "preset": "vae", "data": "points", "net": NET, "train": SHORT},
    "measured": {"job": "evaluate", "runs": ["vae"], "evaluate": MEASURED},
    "report": {"job": "compare", "runs": ["vae"], "evaluate": MEASURED},
}
SETS = ["net.kind=mlp", "net.width=8", "train.batch=8", "train.checkpoint_every=3"]
# Run commands in one process, and print which heavy modules it has imported, and how many processes it has started.
PROGRAM = """
import json, subprocess, sys
from genflow.cli import app
started, begin = [], subprocess.Popen.__init__
def popen(self, *args, **kwargs):
    started.append(str(args[0]))
    begin(self, *args, **kwargs)
subprocess.Popen.__init__ = popen
codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["genflow", *arguments]
    try:
        codes.append(app.main())
    except SystemExit as end:
        codes.append(end.code)
heavy = [name for name in ("torch", "ray", "mlflow", "scipy") if name in sys.modules]
print(json.dumps({"codes": codes, "heavy": heavy, "started": started}))
"""


def run_job(store: Store, job: str, document: dict[str, Any]) -> dict[str, Any]:
    """Run a program in this process, and remember its result as the command does."""
    done = dict(importlib.import_module(f"jobs.{job}").main(document, lambda event, **fields: None))
    answers.record(job, document, store, done)
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Any]]:
    """A store in which a pipeline has run, and the pipeline."""
    from support.without_mlflow import silence

    folder = tmp_path_factory.mktemp("answers")
    store, document = Store(folder / ".genflow"), {"name": "small", "stages": STAGES}
    (folder / "small.yaml").write_text(dump(document), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        silence(patch.setattr)
        patch.setenv("GENFLOW_STORE", str(store.root))
        patch.setattr(classifier, "MAX_STEPS", 5)
        results: dict[str, Any] = {}
        for node in load(document, "small.yaml").stages:
            results[node.name] = run_job(store, node.job, node.document(results))
        run = train(store)["run"]
    journal_path(store.root, run).unlink()  # MLflow is silent here, and `genflow train` would send what it lacks
    return store, document


def train(store: Store) -> dict[str, Any]:
    """Train with the recipe that `genflow train` composes from `SETS`."""
    from genflow.commands import train as commands

    recipe = commands.recipe(store, "vae", [], [], SETS, **{"data.name": "ring8", "train.steps": 4})
    return run_job(store, "train", commands.document(store, recipe))


@pytest.fixture
def copy(made: tuple[Store, dict[str, Any]]) -> Any:
    """Change a file of the store for one test."""
    changed: dict[Path, bytes | None] = {}

    def write(path: Path, content: bytes | None) -> None:
        changed.setdefault(path, path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)

    yield write
    for path, before in changed.items():
        path.write_bytes(before or b"")


def documents(store: Store, pipeline: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The job and the document of every stage."""
    results: dict[str, Any] = {}
    found = {}
    for node in load(pipeline, "small.yaml").stages:
        found[node.name] = node.job, node.document(results)
        results[node.name] = answers.of_stage(store, *found[node.name])
    return found


def test_a_repeated_command_imports_no_torch_and_starts_no_process(made: tuple[Store, dict[str, Any]]) -> None:
    """`genflow run`, `train` and `compare` of what exists, and a dry run, read the store alone."""
    store, _ = made
    sets = [text for key in SETS for text in ("--set", key)]
    measured = [f"evaluate.{key}={json.dumps(value)}" for key, value in MEASURED.items()]
    vae = answers_run(store)
    commands = [
        ["run", "small.yaml"],
        ["run", "small.yaml", "--dry-run"],
        ["train", "vae", "--data", "ring8", "--steps", "4", *sets],
        ["compare", vae, *(text for key in measured for text in ("--set", key))],
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GENFLOW_STORE": str(store.root)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        cwd=store.root.parent, env=environment, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    *printed, last = done.stdout.splitlines()
    assert json.loads(last) == {"codes": [0] * 4, "heavy": [], "started": []}, done.stderr
    text = "\n".join(printed)
    assert text.count("cached") >= 8  # four stages in two commands
    assert "report.html" in text


def answers_run(store: Store) -> str:
    """The id of the run of the pipeline."""
    return min(store.artifacts("runs"), key=lambda run: int(run.meta["steps"])).id


def test_an_answer_is_what_the_job_returns(made: tuple[Store, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of each stage is the one that its program finds itself."""
    store, pipeline = made
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    for job, document in documents(store, pipeline).values():
        found = importlib.import_module(f"jobs.{job}").find(document)
        assert json.loads(json.dumps(found)) == json.loads(json.dumps(answers.of_stage(store, job, document)))
    assert {row["state"] for row in dry_run(load(pipeline, "small.yaml"), store)} == {"cached"}


def test_changed_code_or_recipe_or_place_has_no_answer(
    made: tuple[Store, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A source file, a key of the recipe, the store's place and --fresh all lead to the job."""
    store, pipeline = made
    job, document = documents(store, pipeline)["vae"]
    assert answers.of_stage(store, job, document)
    other = {**document, "recipe": {**document["recipe"], "train": {**document["recipe"]["train"], "seed": 1}}}
    assert answers.of_stage(store, job, other) is None
    assert answers.of_stage(store, job, {**document, "inputs": {"fresh": True}}) is None
    assert answers.of_stage(Store(tmp_path), job, document) is None
    outside = documents(store, pipeline)["measured"][1]
    outside = {**outside, "recipe": {**outside["recipe"], "evaluate": {**MEASURED, "features": "/a/file.pt"}}}
    run_before = list((store.root / answers.FOLDER).iterdir())
    answers.record("evaluate", outside, store, {"cached": False, "rows": []})
    assert list((store.root / answers.FOLDER).iterdir()) == run_before
    monkeypatch.setattr(answers, "fingerprint", lambda *names: "of other code")
    assert answers.of_stage(store, job, document) is None


def test_a_damaged_or_deleted_artifact_has_no_answer(made: tuple[Store, dict[str, Any]], copy: Any) -> None:
    """A changed byte of a checkpoint, a missing manifest of the run, and a missing dataset lead to the job."""
    store, pipeline = made
    run = store.find("runs", answers_run(store))
    jobs = documents(store, pipeline)
    weights = next(run.path / name for name in run.files("checkpoints/*") if name.endswith(".safetensors"))
    assert answers.of_stage(store, *jobs["measured"])
    copy(weights, weights.read_bytes()[:-1] + b"?")
    assert answers.of_stage(store, *jobs["vae"]) is None
    assert answers.of_stage(store, *jobs["measured"]) is None
    assert answers.find("pipeline", {"pipeline": pipeline}, store, lambda event: None) is None
    dataset = store.find("datasets", "ring8")
    copy(dataset.path / "manifest.json", None)
    assert answers.of_stage(store, *jobs["points"]) is None


def test_a_new_evaluation_is_looked_through(made: tuple[Store, dict[str, Any]]) -> None:
    """`compare` may use the number of samples of a later evaluation, so its answer ends with the next one."""
    store, pipeline = made
    job, document = documents(store, pipeline)["report"]
    assert answers.of_stage(store, job, document)
    new = store.root / "evaluations" / "vae-ring8-0000000000"
    new.mkdir()
    assert answers.of_stage(store, job, document) is None
    new.rmdir()
