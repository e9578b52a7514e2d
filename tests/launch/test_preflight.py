"""What is checked before a job is sent: each one line, its cure, and the right exit code."""

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

WELL = {"name": "alpha", "address": "10.0.0.2", "requirements": "", "store": "", "MLflow": ""}
NODE = {"id": "a", "name": "alpha", "address": "10.0.0.2", "head": True, "group": "", "resources": {"CPU": 2.0}}


@dataclass
class Cluster:
    """A dashboard that says what a test wants."""

    address: str = "http://head:8265"
    is_local: bool = False
    says: dict[str, Any] = field(default_factory=dict)
    answers: list[dict[str, str]] = field(default_factory=lambda: [WELL])
    probed: int = 0

    def _say(self, what: str, well: Any) -> Any:
        said = self.says.get(what, well)
        if isinstance(said, Exception):
            raise said
        return said

    def mode(self) -> str:
        return self._say("mode", "token")

    def ray_version(self) -> str:
        return self._say("ray", "2.60.0")

    def python_version(self) -> str:
        return self._say("python", "3.11.7")

    def nodes(self) -> list[dict[str, Any]]:
        return self._say("nodes", [NODE])

    def probe(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.probed += 1
        assert Path(inputs["marker"]).read_text() == Path(inputs["marker"]).stem
        return {"nodes": self._say("probe", self.answers)}


def look(cluster: Cluster, store: Store, document: dict[str, Any] | None = None) -> list[Check]:
    return list(preflight.checks(cluster, document or {}, store, cluster.probe))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", preflight.ALLOW_OPEN):
        monkeypatch.delenv(name, raising=False)


def test_a_cluster_that_will_do(store: Store) -> None:
    """Every line is a tick, in one order; nothing is left behind in the store but what was learned."""
    every = look(Cluster(), store)
    assert all(check.ok for check in every)
    assert [check.name for check in every] == [
        "address", "Ray there", "token", "Python there", "genflow there", "nodes", "resources", "upload",
        "MLflow", "nodes: requirements", "nodes: store", "nodes: MLflow",
    ]  # fmt: skip
    assert [file.suffix for file in (store.root / "probes").iterdir()] == [".json"]


def test_nodes_are_asked_once(store: Store) -> None:
    """The same nodes are not asked again within the hour; another node makes it another cluster."""
    cluster = Cluster()
    look(cluster, store)
    look(cluster, store)
    assert cluster.probed == 1
    cluster.says["nodes"] = [NODE, {**NODE, "id": "b"}]
    look(cluster, store)
    assert cluster.probed == 2


def test_what_failed_is_asked_again(store: Store) -> None:
    """A node that was mended is seen to be well."""
    cluster = Cluster(answers=[{**WELL, "store": "does not see the store"}])
    assert not all(check.ok for check in look(cluster, store))
    cluster.answers = [WELL]
    assert all(check.ok for check in look(cluster, store))


@pytest.mark.parametrize(
    ("says", "document", "name", "kind", "line"),
    [
        ({"mode": ClusterError("nobody")}, {}, "address", ClusterError, "nobody"),
        ({"ray": ClusterError("another Ray")}, {}, "Ray there", ClusterError, "another Ray"),
        ({"mode": "disabled"}, {}, "token", ClusterError, "asks nobody for a token"),
        ({"python": ClusterError("old")}, {}, "Python there", ClusterError, "old"),
        ({}, {"recipe": {"cluster": {"workers": 3}}}, "resources", ResourceError, "3 workers need 1 CPU each"),
        ({}, {"pipeline": {"stages": {"a": {"cluster": {"gpus": 1}}}}}, "resources", ResourceError, "and 1 GPU"),
        ({"probe": SetupError("the cluster finds no `python`")}, {}, "nodes", SetupError, "finds no `python`"),
        ({"probe": [WELL, {**WELL, "name": "beta", "store": "does not see the store /s: No such file"}]}, {},
         "nodes: store", SetupError, r"the node beta \(10.0.0.2\) does not see the store /s: No such file$"),
        ({"probe": [{**WELL, "requirements": "lacks torch"}] * 3}, {}, "nodes: requirements", SetupError,
         "alpha .* lacks torch, and 2 more"),
        ({"probe": [{**WELL, "MLflow": "does not reach MLflow"}]}, {}, "nodes: MLflow", SetupError, "not reach"),
    ],
)  # fmt: skip
def test_what_is_refused(
    store: Store, says: dict[str, Any], document: dict[str, Any], name: str, kind: type[Exception], line: str
) -> None:
    """A command meets the first thing that is wrong, as an error of its own kind, with a cure where there is one."""
    (bad,) = [check for check in look(Cluster(says=says), store, document) if not check.ok]
    assert bad.name == name
    with pytest.raises(kind, match=line) as error:
        preflight.raise_first_failure(iter([bad]))
    assert error.value.code == bad.code  # type: ignore[attr-defined]
    assert "\n" not in bad.found + bad.cure


def test_an_open_cluster_is_meant(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the loopback it is refused unless one says so; on it nobody else gets in."""
    open_to_all = {"mode": "disabled"}
    assert all(check.ok for check in look(Cluster(says=open_to_all, is_local=True), store))
    monkeypatch.setenv(preflight.ALLOW_OPEN, "1")
    assert all(check.ok for check in look(Cluster(says=open_to_all), store))


def test_a_cluster_that_grows_is_not_counted(store: Store) -> None:
    """What an autoscaler may add is known on the head alone."""
    grows = Cluster(says={"nodes": [{**NODE, "group": "cpu"}]})
    assert all(check.ok for check in look(grows, store, {"recipe": {"cluster": {"workers": 64}}}))


def test_a_password_in_mlflows_address(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, and not repeated."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:canary@mlflow:5000")
    (bad,) = [check for check in look(Cluster(), store) if not check.ok]
    assert isinstance(bad.error(), UsageError)
    assert "canary" not in bad.found + bad.cure


def test_the_upload_names_its_largest_files() -> None:
    """What is sent is said with its size: a parcel is small."""
    words = bundle.describe_size()
    assert words.count("kB)") + words.count("MB)") == 3
    assert words.partition(";")[0].endswith(" MB")


class Silent(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture
def mlflow() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_a_node_says_of_itself(tmp_path: Path, mlflow: str) -> None:
    """A folder that is not there, another folder of that name, and one that it sees; an MLflow that answers, or not."""
    from jobs import probe

    marker = tmp_path / "abc.marker"
    assert "does not see the store" in probe.unseen(str(tmp_path), str(marker))
    marker.write_text("another")
    assert "sees another folder" in probe.unseen(str(tmp_path), str(marker))
    marker.write_text("abc")
    assert probe.unseen(str(tmp_path), str(marker)) == ""
    assert probe.silent(mlflow) == probe.silent("") == probe.silent("sqlite:////x/mlflow.db") == ""
    assert "finds no MLflow" in probe.silent(f"{mlflow}/elsewhere")
    assert "does not reach MLflow" in probe.silent("http://127.0.0.1:9")
    assert probe.lacking() == ""
