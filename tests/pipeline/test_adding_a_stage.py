"""docs/adding-a-stage.md works: its stage joins the registry, passes its own test, and runs in a pipeline."""

import functools
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from support import ROOT

import jobs
from genflow.pipeline import plan, stages
from genflow.pipeline.graph import load
from genflow.storage.store import Store
from genflow.system import events
from jobs import pipeline as runner

GUIDE = (ROOT / "docs" / "adding-a-stage.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^## \d\. .*?`([\w/.]+)`\n.*?```(?:python|yaml)\n(.*?)```", GUIDE, re.DOTALL | re.MULTILINE)


class Inline:
    """Ray's three functions that the runner calls, executed in this process."""

    def remote(self, **options: Any) -> Any:
        return lambda function: SimpleNamespace(remote=lambda *args: functools.partial(function, *args))

    def wait(self, tasks: list[Any]) -> tuple[list[Any], list[Any]]:
        return tasks[:1], tasks[1:]

    def get(self, task: Any) -> Any:
        return task()


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The files of the page, with its program in a folder that is added to the registry."""
    folder, files = tmp_path / "jobs", dict(BLOCKS)
    folder.mkdir()
    (folder / "card.py").write_text(files["jobs/card.py"], encoding="utf-8")
    monkeypatch.setattr(stages, "FOLDERS", [*stages.FOLDERS, folder])
    monkeypatch.setattr(jobs, "__path__", [*jobs.__path__, str(folder)])
    yield files
    sys.modules.pop("jobs.card", None)
    vars(jobs).pop("card", None)


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a finished run in the store that the jobs use."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    with store.stage("runs", "vae-1a", name="vae") as staged:
        return staged.commit(meta={"steps": 600, "dataset_name": "digits"}).id


def test_the_page_has_a_program_a_test_and_a_pipeline(guide: dict[str, str]) -> None:
    """The page has three files, and its program becomes the last stage of the registry."""
    assert list(guide) == ["jobs/card.py", "tests/jobs/test_card.py", "card.yaml"]
    assert list(stages.declared())[-1] == "card"
    assert stages.declared()["card"] == importlib.import_module("jobs.card").STAGE


def test_its_pipeline_loads(guide: dict[str, str]) -> None:
    """The card depends on the run's stage, and its document contains the id of the run."""
    card = load(yaml.safe_load(guide["card.yaml"]), "card.yaml").stages[-1]
    assert (card.name, card.needs) == ("card", ("vae",))
    assert card.document({"vae": {"run": "vae-1a"}}) == {"title": "Points on a ring", "inputs": {"runs": ["vae-1a"]}}


def test_its_test_passes(guide: dict[str, str], tmp_path: Path) -> None:
    """The test of the page passes in a pytest process whose `jobs` has the program."""
    (tmp_path / "test_card.py").write_text(guide["tests/jobs/test_card.py"], encoding="utf-8")
    (tmp_path / "conftest.py").write_text(
        "import jobs, pytest\nfrom genflow.storage.store import Store\n"
        f"jobs.__path__.append({str(tmp_path / 'jobs')!r})\n"
        "@pytest.fixture\ndef store(tmp_path):\n    return Store(tmp_path / 'store')\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_card.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_its_program_runs_alone(guide: dict[str, str], run: str, store: Store, tmp_path: Path) -> None:
    """`python -m jobs.card recipe.yaml` emits one result, and the card is in the store."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"title": "Digits", "inputs": {"runs": [run]}}), encoding="utf-8")
    script = (
        f"import runpy, sys, jobs; jobs.__path__.append({str(tmp_path / 'jobs')!r}); sys.argv[1:] = [{str(recipe)!r}]; "
        "runpy.run_module('jobs.card', run_name='__main__')"
    )
    environment = {**os.environ, "GENFLOW_STORE": str(store.root)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8"
    )
    emitted = [event for line in done.stdout.splitlines() if (event := events.parse(line))]
    assert [event["event"] for event in emitted] == ["note", "result"], done.stderr
    assert [artifact.id for artifact in store.artifacts("reports")] == [emitted[-1]["document"]["report"]]


def test_it_runs_in_a_pipeline(
    guide: dict[str, str], run: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dry run lists the card, the runner makes it and then finds it, and the summary shows its id."""
    monkeypatch.setitem(sys.modules, "ray", Inline())
    stage = {"job": "card", "runs": [run], "title": "Digits"}
    pipeline = load({"stages": {"card": stage}}, "card.yaml")
    planned = {"stage": "card", "job": "card", "needs": [], "artifact": "", "state": "to do"}
    assert plan.dry_run(pipeline, store) == [planned]
    made: dict[str, Any] = {}
    failed: dict[str, Any] = {}
    runner._run(pipeline, made, failed, lambda event, **fields: None)
    assert failed == {}
    assert stages.artifact("card", made["card"]) == made["card"]["report"]

    done = runner.main({"pipeline": {"name": "card", "stages": {"card": stage}}}, lambda event, **fields: None)
    assert done["cached"]
    assert done["stages"] == [{"stage": "card", **made["card"], "job": "card", "cached": True}]
