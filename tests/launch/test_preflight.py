"""The checks before a job is sent: each has one line, a fix and the right exit code."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from genflow.errors import ClusterError, ResourceError, SetupError, UsageError
from genflow.launch import bundle, preflight
from genflow.launch.preflight import Check
from genflow.storage.store import Store

HEALTHY = {"name": "alpha", "address": "10.0.0.2", "requirements": "", "store": "", "MLflow": ""}
NODE = {"id": "a", "name": "alpha", "address": "10.0.0.2", "head": True, "group": "", "resources": {"CPU": 2.0}}


@dataclass
class Cluster:
    """A fake dashboard whose answers a test sets; an exception is raised instead of returned."""

    address: str = "http://head:8265"
    is_local: bool = False
    replies: dict[str, Any] = field(default_factory=dict)
    probe_result: list[dict[str, str]] = field(default_factory=lambda: [HEALTHY])
    probed: int = 0

    def _reply(self, key: str, default: Any) -> Any:
        reply = self.replies.get(key, default)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def mode(self) -> str:
        return self._reply("mode", "token")

    def ray_version(self) -> str:
        return self._reply("ray", "2.60.0")

    def python_version(self) -> str:
        return self._reply("python", "3.11.7")

    def nodes(self) -> list[dict[str, Any]]:
        return self._reply("nodes", [NODE])

    def probe(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.probed += 1
        assert Path(inputs["marker"]).read_text(encoding="utf-8") == Path(inputs["marker"]).stem
        return {"nodes": self._reply("probe", self.probe_result)}


def run_checks(cluster: Cluster, store: Store, document: dict[str, Any] | None = None) -> list[Check]:
    return list(preflight.checks(cluster, document or {}, store, cluster.probe))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", preflight.ALLOW_OPEN):
        monkeypatch.delenv(name, raising=False)


def test_a_healthy_cluster(store: Store) -> None:
    """All checks pass, in a fixed order; the store contains only the cached probe result afterwards."""
    checks = run_checks(Cluster(), store)
    assert all(check.ok for check in checks)
    assert [check.name for check in checks] == [
        "address", "Ray there", "token", "Python there", "genflow there", "nodes", "resources", "upload",
        "MLflow", "nodes: requirements", "nodes: store", "nodes: MLflow",
    ]  # fmt: skip
    assert [file.suffix for file in (store.root / "probes").iterdir()] == [".json"]


def test_nodes_are_probed_once(store: Store) -> None:
    """The same nodes are not probed again within an hour; an additional node causes a new probe."""
    cluster = Cluster()
    run_checks(cluster, store)
    run_checks(cluster, store)
    assert cluster.probed == 1
    cluster.replies["nodes"] = [NODE, {**NODE, "id": "b"}]
    run_checks(cluster, store)
    assert cluster.probed == 2


def test_a_failed_probe_is_not_cached(store: Store) -> None:
    """A node passes as soon as it is repaired."""
    cluster = Cluster(probe_result=[{**HEALTHY, "store": "does not see the store"}])
    assert not all(check.ok for check in run_checks(cluster, store))
    cluster.probe_result = [HEALTHY]
    assert all(check.ok for check in run_checks(cluster, store))


@pytest.mark.parametrize(
    ("replies", "document", "name", "kind", "line"),
    [
        ({"mode": ClusterError("no answer")}, {}, "address", ClusterError, "no answer"),
        ({"ray": ClusterError("another Ray")}, {}, "Ray there", ClusterError, "another Ray"),
        ({"mode": "disabled"}, {}, "token", ClusterError, "requires no token"),
        ({"python": ClusterError("old")}, {}, "Python there", ClusterError, "old"),
        ({}, {"recipe": {"cluster": {"workers": 3}}}, "resources", ResourceError, "3 workers need 1 CPU each"),
        ({}, {"pipeline": {"stages": {"a": {"cluster": {"gpus": 1}}}}}, "resources", ResourceError, "and 1 GPU"),
        ({"probe": SetupError("the cluster has no `python`")}, {}, "nodes", SetupError, "has no `python`"),
        ({"probe": [HEALTHY, {**HEALTHY, "name": "beta", "store": "does not see the store /s: No such file"}]}, {},
         "nodes: store", SetupError, r"node beta \(10.0.0.2\) does not see the store /s: No such file$"),
        ({"probe": [{**HEALTHY, "requirements": "lacks torch"}] * 3}, {}, "nodes: requirements", SetupError,
         "alpha .* lacks torch, and 2 more"),
        ({"probe": [{**HEALTHY, "MLflow": "does not reach MLflow"}]}, {}, "nodes: MLflow", SetupError, "not reach"),
    ],
)  # fmt: skip
def test_failed_checks(
    store: Store, replies: dict[str, Any], document: dict[str, Any], name: str, kind: type[Exception], line: str
) -> None:
    """A failed check becomes an error of its own class, with the check's exit code and one line of text."""
    (bad,) = [check for check in run_checks(Cluster(replies=replies), store, document) if not check.ok]
    assert bad.name == name
    with pytest.raises(kind, match=line) as error:
        preflight.raise_first_failure(iter([bad]))
    assert error.value.code == bad.code  # type: ignore[attr-defined]
    assert "\n" not in bad.found + bad.cure


def test_a_cluster_without_token(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token a cluster on the loopback passes, and a remote one only with GENFLOW_OPEN_CLUSTER=1."""
    replies = {"mode": "disabled"}
    assert all(check.ok for check in run_checks(Cluster(replies=replies, is_local=True), store))
    monkeypatch.setenv(preflight.ALLOW_OPEN, "1")
    assert all(check.ok for check in run_checks(Cluster(replies=replies), store))


def test_an_autoscaling_cluster_is_not_counted(store: Store) -> None:
    """With an autoscaler, the resources check passes, because only the head knows the size limit."""
    cluster = Cluster(replies={"nodes": [{**NODE, "group": "cpu"}]})
    assert all(check.ok for check in run_checks(cluster, store, {"recipe": {"cluster": {"workers": 64}}}))


def test_a_password_in_mlflows_address(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password in the tracking URI is a usage error, and the error does not contain the password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:canary@mlflow:5000")
    (bad,) = [check for check in run_checks(Cluster(), store) if not check.ok]
    assert isinstance(bad.error(), UsageError)
    assert "canary" not in bad.found + bad.cure


def test_the_upload_names_its_largest_files() -> None:
    """The upload check shows the total size and the three largest files."""
    text = bundle.describe_size()
    assert text.count("kB)") + text.count("MB)") == 3
    assert text.partition(";")[0].endswith(" MB")


class HealthOnly(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture
def mlflow() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), HealthOnly)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_probe_of_a_node(tmp_path: Path, mlflow: str) -> None:
    """The probe reports a missing store, another folder at the same path, and an MLflow server that does not answer."""
    from jobs import probe

    marker = tmp_path / "abc.marker"
    assert "does not see the store" in probe.store_problem(str(tmp_path), str(marker))
    marker.write_text("another", encoding="utf-8")
    assert "sees another folder" in probe.store_problem(str(tmp_path), str(marker))
    marker.write_text("abc", encoding="utf-8")
    assert probe.store_problem(str(tmp_path), str(marker)) == ""
    assert [probe.mlflow_problem(uri) for uri in (mlflow, "", "sqlite:////x/mlflow.db")] == ["", "", ""]
    assert "finds no MLflow" in probe.mlflow_problem(f"{mlflow}/elsewhere")
    assert "does not reach MLflow" in probe.mlflow_problem("http://127.0.0.1:9")
    assert probe.missing_requirements() == ""
