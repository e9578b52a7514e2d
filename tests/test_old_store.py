"""A store that genflow 0.1.0 wrote stays readable: fixtures/store-0.1.tar.xz, made by fixtures/make_old_store.sh.

Content addresses hash source files, so a recipe of that version is a new run for later code. Its artifacts can still be
found by name, sampled, evaluated, exported and served.
"""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.commands import in_this_process

from genflow.data.pairs import Pairs
from genflow.data.shards import Dataset
from genflow.evaluation.features import classifier
from genflow.recipe.compose import compose
from genflow.sampling.engine import Engine
from genflow.serving.engine_cache import EngineCache, check_models
from genflow.serving.model_list import served_models
from genflow.serving.models import Model
from genflow.storage.store import Store
from genflow.tracking import sync
from genflow.tracking.journal import entries as journal_entries
from genflow.tracking.journal import journal_path
from genflow.tracking.journal_replay import SendResult
from genflow.tuning.trial import read_reports, trial_folder
from jobs import compare, evaluate

ARCHIVE = Path(__file__).parent / "fixtures" / "store-0.1.tar.xz"
RUNS = {"vae": "vae-ramps-8bd2507525", "flow_matching": "flow_matching-ramps-ddb05a978f",
        "ddpm": "ddpm-ramps-14cb5594ad"}  # fmt: skip
SEEDS = range(3, 11)  # of the samples in drawn/
ROUNDING = 1  # grey levels of 256; another CPU may round sums differently
MEASURED = {"features": "random", "samples": 16, "sweep_samples": 16, "steps": [1], "likelihood": 2, "bootstrap": 2}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked once. The test of an evaluation adds to the store; no other test writes to it."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def store(unpacked: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """The old store, and an empty current folder."""
    monkeypatch.setenv("GENFLOW_STORE", str(unpacked / "store"))
    monkeypatch.chdir(tmp_path)
    return Store()


@pytest.fixture
def genflow(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """Run a command with --json in this process, and return its document."""
    command = in_this_process(monkeypatch, capsys)

    def run(*arguments: str) -> dict[str, Any]:
        code, out, err = command(*arguments, "--json")
        assert not code, err
        document: dict[str, Any] = json.loads(out)
        return document

    return run


def drawn(unpacked: Path, kind: str) -> np.ndarray:
    """The samples that the old version drew from a run: (8, C, H, W) grey levels."""
    return np.load(unpacked / "drawn" / f"{kind}.npy").astype(int)


def test_the_archive_stays_small() -> None:
    """The archive is below 1 MB, because every clone contains it."""
    assert ARCHIVE.stat().st_size < 1_000_000


def test_old_artifacts_are_listed(genflow: Callable[..., dict[str, Any]]) -> None:
    """`ls` lists the three runs in the order of their creation, and the dataset."""
    runs = genflow("runs", "ls")["runs"]
    assert [(run["run"], run["family"], run["steps"]) for run in runs] == [(id, kind, 20) for kind, id in RUNS.items()]
    (dataset,) = genflow("data", "ls")["datasets"]
    assert (dataset["name"], dataset["shape"], dataset["splits"]) == ("ramps", [3, 8, 8], {"train": 72, "val": 24})


@pytest.mark.parametrize("kind", RUNS)
def test_a_sample_is_still_a_function_of_its_seed(
    kind: str, genflow: Callable[..., dict[str, Any]], unpacked: Path
) -> None:
    """The same seeds give the samples that the old version drew."""
    genflow("sample", RUNS[kind], "-n", str(len(SEEDS)), "--seed", str(SEEDS[0]), "-o", "now.npy")
    np.testing.assert_allclose(np.load("now.npy").astype(int), drawn(unpacked, kind), rtol=0, atol=ROUNDING)


def test_the_best_run_is_chosen_from_old_evaluations(genflow: Callable[..., dict[str, Any]], store: Store) -> None:
    """`best:fd` is the run with the smallest distance among the stored evaluations."""
    measured = [json.loads((a.path / "metrics.json").read_bytes()) for a in store.artifacts("evaluations")]
    best = min(measured, key=lambda row: row["metrics"]["fd"]["value"])["run"]
    assert genflow("sample", "best:fd", "-n", "1", "-o", "best.npy")["run"] == best


def test_an_old_run_is_evaluated_and_compared(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old runs can be evaluated and compared, and a second request finds the results."""
    monkeypatch.setattr(classifier, "MAX_STEPS", 5)  # steps of training the classifier of the features
    monkeypatch.setattr(sync, "replay", lambda store, run, deadline_s: SendResult(complete=True))
    ids = [RUNS["flow_matching"], RUNS["ddpm"]]
    document = {"recipe": compose(None, {"evaluate": MEASURED}).model_dump(mode="json"), "inputs": {"runs": ids}}
    quiet: Callable[..., None] = lambda event, **fields: None  # noqa: E731
    rows = evaluate.main(document, quiet)["rows"]
    assert [row["run"] for row in rows] == ids
    assert all(np.isfinite(row["metrics"]["fd"]["value"]) for row in rows)
    report = compare.main(document, quiet)
    assert report["rows"] == [{**row, "cached": True} for row in rows]
    assert (Path(report["path"]) / "report.html").is_file()
    assert compare.find(document) == {**report, "cached": True}


def test_an_old_run_is_exported(genflow: Callable[..., dict[str, Any]], unpacked: Path) -> None:
    """An exported old run draws the run's samples."""
    genflow("export", RUNS["ddpm"], "--out", "exported")
    now = Engine.from_folder(Path("exported")).draw(SEEDS, [0, 1] * 4).images.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(now.astype(int), drawn(unpacked, "ddpm"), rtol=0, atol=ROUNDING)


def test_old_runs_are_served(store: Store, unpacked: Path) -> None:
    """Each old run is a served model with its metrics, and its engine draws the same samples."""
    listed = served_models(store, [store.find("runs", id) for id in RUNS.values()])
    check_models(listed)
    engines = EngineCache(2**31)
    for kind, entry in zip(RUNS, listed, strict=True):
        model = Model(entry)
        card = model.card
        assert card["family"]["kind"] == kind
        assert card["metrics"]["fd"]["value"] > 0
        images = engines.engine(entry).draw(SEEDS, [0, 1] * 4).images.transpose(0, 3, 1, 2)
        np.testing.assert_allclose(images.astype(int), drawn(unpacked, kind), rtol=0, atol=ROUNDING)


def test_a_new_run_starts_from_old_artifacts(genflow: Callable[..., dict[str, Any]], store: Store) -> None:
    """A new run can use the weights of an old run, the pairs of an old teacher and the result of an old search."""
    (pairs,), (search,) = store.artifacts("pairs"), store.artifacts("searches")
    begun = ("train", "flow_matching", "--data", "ramps", "--init", RUNS["flow_matching"], "--dry-run")
    plan = genflow(*begun, "--set", f"data.pairs={pairs.id}")
    assert plan["recipe"]["net"]["width"] == 8
    assert plan["recipe"]["data"]["pairs"] == pairs.id
    best = search.path / "best.yaml"
    again = genflow("train", "-c", str(best), "--dry-run")["recipe"]
    assert again["train"]["lr"] == yaml.safe_load(best.read_text(encoding="utf-8"))["train"]["lr"]
    facts = Dataset.open(store.find("datasets", "ramps")).facts
    assert len(Pairs.open(pairs, facts)) == 24


def test_old_journals_and_trials_are_read(store: Store) -> None:
    """Old journals have their final status, and old trials their reports."""
    for id in RUNS.values():
        lines = [entry for _, entry in journal_entries(journal_path(store.root, id))]
        assert [line["status"] for line in lines if "status" in line][-1] == "FINISHED"
    (search,) = store.artifacts("searches")
    for number in (0, 1):
        (report,) = read_reports(trial_folder(search.path / "trials", number))
        assert report["values"]["fd"] > 0
