"""An MLflow server that fails at a request, is down, or is slow: what arrives, and how often it is asked."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from support.mlflow_server import MlflowServer
from typer.testing import CliRunner

from genflow.cli.app import app
from genflow.storage.store import Store
from genflow.tracking import journal_replay, mlflow_client, model_package, sync
from genflow.tracking.journal import Journal, journal_path
from genflow.tracking.mlflow_client import Requests

STEPS = 40
BATCH = 20  # numbers in a request, so that a journal needs several


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    """An MLflow server, which the environment names."""
    made = MlflowServer()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.url)
    monkeypatch.setattr(journal_replay, "BATCH", BATCH)
    yield made
    made.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock that measures requests; `clock.now` is its time in seconds."""
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(mlflow_client, "monotonic", lambda: made.now)
    return made


def store_with(folder: Path, *runs: str) -> Store:
    """A store with the journals of finished runs."""
    store = Store(folder)
    for run in runs:
        with Journal(journal_path(store.root, run), experiment="digits", name=run) as journal:
            for step in range(STEPS):
                journal.metrics(step, {"loss": step / 2, "lr": 1.0})
            journal.status("FINISHED")
    return store


def assert_everything_is_there(server: MlflowServer, runs: int) -> None:
    """No row is lost or doubled, and no run is."""
    assert len(server.runs) == runs
    assert {run["info"]["status"] for run in server.runs.values()} == {"FINISHED"}
    assert len(server.rows) == runs * STEPS * 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failure_at_any_request_loses_and_doubles_nothing(server: MlflowServer, tmp_path: Path, when: str) -> None:
    """Whichever request gets no answer, the next try sends the rest: rows, runs and status arrive once."""
    assert sync.sync(store_with(tmp_path / "whole", "a")).complete
    requests = len(server.asked)
    assert requests > 6
    for failing in range(1, requests + 1):
        server.asked, server.rows, server.runs, server.experiments = [], set(), {}, {}
        server.fails = lambda number, failing=failing: when if number == failing else ""  # type: ignore[misc]
        store = store_with(tmp_path / str(failing), "a")
        first = sync.sync(store)
        assert first.complete or server.url in first.problem
        assert sync.sync(store).complete, failing
        assert_everything_is_there(server, 1)
        assert sync.sync(store).entries == 0


def test_each_try_continues_where_the_last_ended(server: MlflowServer, tmp_path: Path) -> None:
    """A server that fails at every sixth request gets everything, and no batch that it has accepted again."""
    server.fails = lambda number: "before" if number % 6 == 0 else ""
    store, tries = store_with(tmp_path, "a", "b"), 1
    while not sync.sync(store).complete:
        tries += 1
        assert tries < 10
    assert tries > 2
    assert_everything_is_there(server, 2)
    failed = sum(server.asked[i] == "runs/log-batch" for i in range(5, len(server.asked), 6))
    assert server.asked.count("runs/log-batch") - failed == 2 * STEPS * 2 / BATCH


@pytest.mark.parametrize("command", ["sync", "replay_all", "catch_up"])
def test_what_follows_a_dead_server_does_not_ask_again(server: MlflowServer, tmp_path: Path, command: str) -> None:
    """After a request without an answer, a command asks no more, however many journals there are."""
    server.fails = lambda number: "before"
    store = store_with(tmp_path, "a", "a.0001", "a.0002", "b")
    sent = sync.sync(store) if command == "sync" else getattr(sync, command)(store, "a")
    assert server.url in sent.problem
    assert len(server.asked) == 1


def test_importing_mlflow_is_not_sending(
    server: MlflowServer, clock: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that takes an hour leaves the whole limit to the requests."""
    load = mlflow_client.load

    def slow() -> None:
        clock.now += 3600
        load()

    monkeypatch.setattr(journal_replay, "load", slow)
    assert sync.sync(store_with(tmp_path, "a"), limit_s=1).complete
    assert clock.now >= 3600


def test_packing_a_model_is_not_sending(
    clock: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a model is packed no request is under way, and the time does not count."""
    store, requests, waiting = store_with(tmp_path, "a"), Requests(), []
    (tmp_path / "checkpoint").mkdir()

    def pack(*_: Any, **__: Any) -> None:
        clock.now += 3600
        waiting.append(requests.waiting)

    monkeypatch.setattr(model_package, "save_pyfunc_model", pack)
    monkeypatch.setattr(model_package, "copy_model_files", lambda *_: None)
    replay = journal_replay.JournalReplay(
        journal_path(store.root, "a"), store, "http://x", None, 1, sync.SendResult(), requests
    )
    replay.client = MagicMock()
    replay._send({"model": {"checkpoint": "checkpoint", "name": "a"}, "step": 1})
    assert replay.client.create_model_version.called
    assert waiting == [False]
    assert (requests.seconds, clock.now) == (0, 3600)


def test_a_slow_server_that_answers_has_a_total_limit(
    server: MlflowServer, clock: SimpleNamespace, tmp_path: Path
) -> None:
    """With a limit, requests end after it and the problem says so; the next calls send the rest, once."""

    def slow() -> None:
        clock.now += 9

    server.on_request = slow
    store, tries = store_with(tmp_path, "a", "b"), 0
    while not (sent := sync.sync(store, limit_s=60)).complete:
        assert "did not accept everything within 60 s; the next time continues there" in sent.problem
        tries += 1
        assert len(server.asked) <= tries * 7
        assert tries < 9
    assert tries > 1
    assert_everything_is_there(server, 2)


def test_ui_sends_the_rest_to_a_server(server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`genflow ui`, which warnings name, sends what a server lacks, and prints its address and the store's page."""
    monkeypatch.setenv("GENFLOW_STORE", store_with(tmp_path, "a").url)
    server.fails = lambda number: "before"
    done = CliRunner().invoke(app, ["ui"], env=dict(os.environ))
    assert "warning: MLflow lacks some data of this store" in done.stderr
    server.fails = lambda number: ""
    done = CliRunner().invoke(app, ["ui"], env=dict(os.environ))
    assert (done.exit_code, done.stderr) == (0, "")
    assert server.url in done.stdout
    page = next(line for line in done.stdout.splitlines() if line.startswith("Store")).split()[1]
    assert "<h2>" in Path(page.removeprefix("file://")).read_text(encoding="utf-8")
    assert_everything_is_there(server, 1)
