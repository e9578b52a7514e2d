"""docs/adding-a-metric.md is correct: with its file in the folder, every part of genflow uses the metric."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from support import ROOT

GUIDE = (ROOT / "docs" / "adding-a-metric.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^## \d\. .*?`([\w/.]+)`\n.*?```python\n(.*?)```", GUIDE, re.DOTALL | re.MULTILINE))
METRIC, TEST = "genflow/evaluation/metrics/swd.py", "tests/evaluation/metrics/test_swd.py"

PROGRAM = """
import json, sys
from pathlib import Path

import genflow
from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.evaluation import evaluate
from genflow.evaluation.features.extractor import load_features
from genflow.evaluation.report import page, table
from genflow.recipe.schema import Data, Evaluate
from genflow.sampling.engine import Engine
from genflow.storage.store import Store
from genflow.tuning import metrics
from support.trained_run import trained_run

def quiet(*args, **fields): pass

store = Store(Path(sys.argv[1]))
artifact, _ = prepare(store, Data(source="ring8", samples=600, val=0.3), in_process, quiet)
data = Dataset.open(artifact)
runs = [trained_run(store, data, "vae", name=f"vae-{steps}", steps=steps) for steps in (2, 40)]
options = Evaluate(samples=100, sweep_samples=50, steps=(), likelihood=0, bootstrap=3)
rows = [evaluate.evaluate(store, run, artifact, options, quiet) for run in runs]
ruler = metrics.metric_suite(load_features(store, data, "classifier", quiet), 0, 0)
found = {
    "genflow": genflow.__file__, "rows": rows,
    "head": table.columns({"rows": rows}), "table": table.rows({"rows": rows}),
    "best": table.best(rows, "swd"), "best_run": table.best_run(store, "swd")[0].id,
    "report": page.build(store, rows).file("report.html").read_text(),
    "choices": metrics.names(), "mode": metrics.mode("swd"),
    "searched": metrics.measure(store, Engine.load(runs[1]), data, ruler, metrics.check(["swd"]), 100, 0),
}
Path(sys.argv[2]).unlink()
found["id_without_it"] = evaluate.evaluation_id(runs[0], artifact, options)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of a copy of genflow with the metric of the page: two runs are measured, compared and searched by it."""
    copy = tmp_path_factory.mktemp("metric")
    for folder in ("genflow", "jobs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / METRIC).write_text(BLOCKS[METRIC], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(copy / "store"), str(copy / METRIC)], cwd=copy, encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(copy), str(ROOT / "tests")])}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["genflow"].startswith(str(copy))
    return found


def test_the_page_is_one_file_and_its_test() -> None:
    """The page writes exactly these two files."""
    assert list(BLOCKS) == [METRIC, TEST]


def test_it_is_in_the_document(seen: dict[str, Any]) -> None:
    """The entry has an interval, n, the name of the features and a floor from real rows."""
    for row in seen["rows"]:
        found = row["metrics"]["swd"]
        assert set(found) == {"value", "low", "high", "n", "features", "floor"}
        assert found["low"] <= found["value"] <= found["high"]
        assert found["value"] > found["floor"] > 0  # so short a training does not reach the floor
        assert list(row["metrics"])[-1] == "swd"


def test_it_is_a_column_of_both_tables(seen: dict[str, Any]) -> None:
    """It is a column after the other metrics on the command line, and a column of the report."""
    assert seen["head"][-4:] == ["bits/dim", "swd", "ms/img", "img/s train"]
    assert all(len(line) == len(seen["head"]) and float(line[-3]) > 0 for line in seen["table"])
    assert '<th scope="col">SWD ↓</th></tr>' in seen["report"]


def test_it_finds_the_best_run(seen: dict[str, Any]) -> None:
    """`best:swd` is the run with the smallest value."""
    best = min(seen["rows"], key=lambda row: row["metrics"]["swd"]["value"])["run"]
    assert (seen["best"], seen["best_run"]) == (best, best)


def test_a_search_can_use_it(seen: dict[str, Any]) -> None:
    """A search lists it, minimizes it, and can measure a trial by it only."""
    assert seen["choices"][-5:] == ["swd", "nfe", "ms", "ms_alone", "loss"]
    assert seen["mode"] == "min"
    assert list(seen["searched"]) == ["swd"]
    assert seen["searched"]["swd"] > 0


def test_it_changes_the_address_of_an_evaluation(seen: dict[str, Any]) -> None:
    """Without the file, the same evaluation has a different id, so no old document is reused."""
    assert seen["rows"][0]["evaluation"] != seen["id_without_it"]


def test_its_own_test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test file of the page passes."""
    metric, test = ModuleType("genflow.evaluation.metrics.swd"), ModuleType("test_swd")
    exec(compile(BLOCKS[METRIC], METRIC, "exec"), metric.__dict__)
    monkeypatch.setitem(sys.modules, metric.__name__, metric)
    exec(compile(BLOCKS[TEST], TEST, "exec"), test.__dict__)
    tests = [value for name, value in vars(test).items() if name.startswith("test_")]
    assert len(tests) == 2
    for each in tests:
        each()
