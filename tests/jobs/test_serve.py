"""Start and end of the serving job, without Ray: a cluster has one address for all its applications."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from ray import serve

from genflow.cli.endpoints import list_endpoints
from genflow.errors import ClusterError
from genflow.serving import endpoints
from genflow.storage.store import Store
from jobs import serve as job

INPUTS = {"name": "mine", "host": "127.0.0.1", "port": 8000}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls to Serve, in order."""
    calls: list[str] = []
    for name in ("start", "shutdown", "delete"):
        monkeypatch.setattr(serve, name, lambda *_, name=name, **__: calls.append(name))
    monkeypatch.setattr(job.endpoints, "remove", lambda store, name: calls.append(f"remove {name}"))
    return calls


def running(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=dict.fromkeys(names)))


def test_another_application_is_not_replaced(monkeypatch: pytest.MonkeyPatch, called: list[str]) -> None:
    """If the cluster serves another application, the error names it and the command that ends it."""
    running(monkeypatch, "other")
    with pytest.raises(ClusterError, match="already serves other") as caught:
        job.start_serve(INPUTS, "127.0.0.1")
    assert "genflow endpoints down other" in caught.value.hint
    assert not called


@pytest.mark.parametrize("left", [(), ("mine",)])
def test_leftovers_are_removed_first(monkeypatch: pytest.MonkeyPatch, called: list[str], left: Any) -> None:
    """An earlier proxy is shut down before the start, because it would keep its old address."""
    running(monkeypatch, *left)
    job.start_serve(INPUTS, "127.0.0.1")
    assert called == ["shutdown", "start"]


@pytest.mark.parametrize(("others", "last"), [((), ["shutdown"]), (("other",), [])])
def test_serve_ends_with_the_last_application(
    monkeypatch: pytest.MonkeyPatch, called: list[str], others: tuple[str, ...], last: list[str]
) -> None:
    """The last application shuts Serve down, which frees the port; others are only deleted.

    Serve is shut down once the replicas have ended, because it kills the proxy and the requests that it carries.
    """
    monkeypatch.setenv("GENFLOW_STORE", "/tmp")
    left = iter([("mine", *others), ("mine", *others), others])

    def status() -> SimpleNamespace:
        called.append("status")
        return SimpleNamespace(applications=dict.fromkeys(next(left)))

    monkeypatch.setattr(serve, "status", status)
    job.shut_down(INPUTS)
    assert called == ["remove mine", "delete", "status", "status", "status", *last]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("2001:db8::7", "http://[2001:db8::7]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
    ],
)
def test_the_printed_address_is_a_url(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, host: str, url: str
) -> None:
    """The note of `serve`, its result and `endpoints ls` print a URL that a client can open."""
    inputs = {**INPUTS, "host": host, "models": []}
    assert urlsplit(url).port == 8000
    monkeypatch.setattr(job, "metrics_url", lambda: "")
    assert f"playground {url}/ · API {url}/docs" in job._serving_note(inputs, [])
    assert job._result(inputs, [], "ended")["address"] == url
    store = Store(tmp_path)
    endpoints.write(store, inputs)
    monkeypatch.setenv("GENFLOW_STORE", store.url)
    monkeypatch.setattr(endpoints, "is_healthy", lambda address: True)
    list_endpoints(json=True)
    assert url in capsys.readouterr().out


def test_serve_files_of_genflow_0_1_find_their_imports() -> None:
    """`jobs.replicas:build` and `jobs.proxy:middlewares` are the objects of today's modules."""
    from jobs import proxy, replicas
    from jobs.runtime.serve import deployment, retry_middleware

    assert replicas.build is deployment.build
    assert proxy.middlewares is retry_middleware.middlewares
