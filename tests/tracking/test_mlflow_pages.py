"""What a person sees in MLflow: few parameters, the columns of an experiment, and how `genflow ui` opens them."""

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from genflow import build, families
from genflow.cli.app import app
from genflow.errors import SetupError
from genflow.recipe.compose import compose
from genflow.specs import DataSpec
from genflow.storage.store import Store
from genflow.system import ports
from genflow.tracking import database, pages, sync
from genflow.tracking.experiments import TABLE
from genflow.tracking.journal import Cursor, Journal, journal_path
from genflow.tracking.parameters import MOST, parameters

DIGITS = DataSpec((1, 8, 8), 17, tuple("0123456789"), {"train": 90, "val": 10})
SERVER = """
import http.server, sys
print("noise of a server"); sys.stdout.flush()
class Quiet(http.server.BaseHTTPRequestHandler): pass
server = http.server.HTTPServer(("127.0.0.1", {port}), Quiet)
server.timeout = 20
server.handle_request()
print("the last words", file=sys.stderr)
sys.exit({code})
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_database: Path) -> Store:
    """A store with MLflow's empty database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("GENFLOW_STORE", str(tmp_path))
    (tmp_path / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    return Store(tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in families.kinds() if kind not in ("autoencoder", "consistency")])
def test_parameters_are_few_and_in_use(kind: str) -> None:
    """At most 25: the family's and the net's own, one budget, and what the user has set."""
    recipe = build.resolve(compose(kind, {"train": {"minutes": 2.5, "clip": 3.0}, "data": {"name": "d-1"}}), DIGITS)
    found = parameters(recipe)
    assert len(found) <= MOST == 25
    assert (found["family.kind"], found["net.kind"]) == (kind, recipe.net["kind"])
    assert (found["train.minutes"], found["train.seed"], found["train.clip"]) == (2.5, 0, 3.0)
    assert "train.steps" not in found
    assert {key.partition(".")[0] for key in found} <= {"family", "net", "train", "sample"}


def test_the_first_page_opens_at_the_newest_experiment() -> None:
    """The script comes before MLflow's own, closes the assistant, and has the columns of an experiment."""
    page = pages.with_script("<!doctype html><html><head><script src=main.js></script></head></html>", "7")
    assert page.index("Storage.prototype") < page.index("main.js")
    assert 'if ("7" && !location.hash) location.replace(`#/experiments/${"7"}/runs`)' in page
    assert json.dumps(TABLE) in page
    assert 'if ("" && ' in pages.with_script("<head>", ""), "without a run, MLflow's home opens"


def test_the_newest_experiment_is_that_of_the_journal_written_last(store: Store) -> None:
    """Journals that were never sent, or were sent elsewhere, have no experiment here."""
    uri = database.tracking_uri(store)
    sent = {"a": (uri, "1"), "b": (uri, "2"), "c": ("http://elsewhere", "3"), "d": ("", "")}
    assert sync.newest_experiment(store) == ""
    for age, (run, (where, experiment)) in enumerate(sent.items()):
        path = journal_path(store.root, run)
        Journal(path, experiment=run).close()
        Cursor(where, "j", experiment, "r", path.stat().st_size, "FINISHED").write(path)
        os.utime(path, (age, age))
    assert sync.newest_experiment(store) == "2"


@pytest.mark.parametrize(("code", "registered"), [(0, True), (0, False), (9, True)])
def test_ui_prints_addresses_and_no_log(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int, registered: bool
) -> None:
    """The address appears once the server answers; a server that fails is quoted in one line."""
    port = ports.free_port()
    command = [sys.executable, "-c", SERVER.format(port=port, code=code)]
    monkeypatch.setattr(database, "ui_command", lambda *_: command)
    monkeypatch.setattr(pages, "is_registered", lambda: registered)
    with Journal(journal_path(store.root, "a"), experiment="digits") as journal:
        journal.status("FINISHED")
    done = CliRunner().invoke(app, ["ui", "--port", str(port)], env=dict(os.environ))
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["Store", "Ray", "MLflow"]
    table = "" if registered else "#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=quality"
    assert f" http://127.0.0.1:{port}/{table}   (press" in done.stdout
    assert "noise" not in done.output
    if code:
        assert isinstance(done.exception, SetupError)
        assert done.exception.message.endswith("exit code 9: the last words")
    else:
        assert done.exit_code == 0
