"""The job that serves, where it can be tried without Ray: a cluster has one address for all that it serves."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve

from genflow.errors import ClusterError
from jobs import serve as job

INPUTS = {"name": "mine", "host": "127.0.0.1", "port": 8000}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Serve is told, in order."""
    told: list[str] = []
    for name in ("start", "shutdown", "delete"):
        monkeypatch.setattr(serve, name, lambda *_, name=name, **__: told.append(name))
    monkeypatch.setattr(job.endpoints, "remove", lambda store, name: told.append(f"forget {name}"))
    return told


def running(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=dict.fromkeys(names)))


def test_what_else_a_cluster_serves_stays(monkeypatch: pytest.MonkeyPatch, called: list[str]) -> None:
    """One line says what, and how to end it."""
    running(monkeypatch, "other")
    with pytest.raises(ClusterError, match="serves other already") as caught:
        job.start_serve(INPUTS, "127.0.0.1")
    assert "genflow endpoints down other" in caught.value.hint
    assert not called


@pytest.mark.parametrize("left", [(), ("mine",)])
def test_what_an_endpoint_left_goes_first(monkeypatch: pytest.MonkeyPatch, called: list[str], left: Any) -> None:
    """Its proxy would keep the address that it had."""
    running(monkeypatch, *left)
    job.start_serve(INPUTS, "127.0.0.1")
    assert called == ["shutdown", "start"]


@pytest.mark.parametrize(("names", "last"), [(("mine",), "shutdown"), (("mine", "other"), "delete")])
def test_the_last_endpoint_takes_serve_with_it(
    monkeypatch: pytest.MonkeyPatch, called: list[str], names: tuple[str, ...], last: str
) -> None:
    """And so the port is free again."""
    monkeypatch.setenv("GENFLOW_STORE", "/tmp")
    running(monkeypatch, *names)
    job.shut_down(INPUTS)
    assert called == ["forget mine", last]
