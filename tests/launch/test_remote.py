"""The bundle of a job, and the errors for the answers of a dashboard."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from genflow.errors import BY_CODE, ClusterError, ResourceError, SetupError, Stopped, UsageError
from genflow.launch import bundle, preflight, remote
from genflow.launch.ray_dashboard import Dashboard
from genflow.launch.ray_jobs import Jobs
from genflow.storage.store import Store
from genflow.system import source_hash

DOCUMENT = {"recipe": {"name": "übung", "train": {"lr": 1e-4}}, "inputs": {}}
Answer = tuple[int, Any]


def tree(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_the_layout_of_a_bundle(tmp_path: Path) -> None:
    """A bundle contains the three folders and the recipe in the repository's layout, and no compiled file."""
    made = tree(bundle.write(DOCUMENT, tmp_path / "bundle"))
    assert {name.partition("/")[0] for name in made} == {"genflow", "jobs", "pipelines", "recipe.yaml"}
    assert {"genflow/launch/remote.py", "jobs/train.py"} <= made.keys()
    assert not [name for name in made if name.endswith(".pyc") or "_home" in name]
    program = "import json; from pathlib import Path; from genflow.recipe.files import read;"
    program += "print(json.dumps(read(Path('recipe.yaml'))))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "bundle", capture_output=True, check=True)
    assert json.loads(done.stdout) == DOCUMENT


def test_a_wheel_makes_the_same_bundle(tmp_path: Path) -> None:
    """A wheel, with jobs/ in genflow/_home, makes a bundle with the same bytes and name as a checkout."""
    site, ignore = tmp_path / "site", shutil.ignore_patterns("__pycache__")
    shutil.copytree(source_hash.PACKAGE, site / "genflow", ignore=ignore)
    for name in ("jobs", "pipelines"):
        shutil.copytree(source_hash.resources_dir() / name, site / "genflow/_home" / name, ignore=ignore)
    program = (
        "import json, sys; from pathlib import Path; from genflow.launch import bundle; d = json.loads(sys.argv[1]);"
        "bundle.write(d, Path(sys.argv[2])); print(bundle.identity(d))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, json.dumps(DOCUMENT), str(tmp_path / "wheel")],
        env={**os.environ, "PYTHONPATH": str(site)}, cwd=tmp_path, capture_output=True, check=True, encoding="utf-8",
    )  # fmt: skip
    assert tree(tmp_path / "wheel") == tree(bundle.write(DOCUMENT, tmp_path / "checkout"))
    assert done.stdout.strip() == bundle.identity(DOCUMENT)


def test_a_bundle_is_saved_once(store: Store) -> None:
    """Saving the same bundle twice leaves one folder in the store, and no temporary folder."""
    first = bundle.save(DOCUMENT, store, "train-1")
    assert bundle.save(DOCUMENT, store, "train-1") == first
    assert [entry.name for entry in (store.root / "parcels").iterdir()] == ["train-1"]


def test_a_bundle_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle above the size limit is a ResourceError that names the largest files."""
    monkeypatch.setattr(bundle, "MAX_BYTES", 1000)
    with pytest.raises(ResourceError, match=r"the largest files: (genflow|jobs)/\S+ \(\d+ kB\)"):
        bundle.write(DOCUMENT, tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.example/team", "https://ray.example/team"),
        ("head", "http://head:8265"),
        (" head:1234 ", "http://head:1234"),
        ("[::1]:1234", "http://[::1]:1234"),
    ],
)
def test_addresses(given: str, expected: str) -> None:
    """The address of a dashboard is accepted with or without scheme and port."""
    assert Dashboard.at(given).address == expected


@pytest.mark.parametrize("given", ["ray://head:10001", "ftp://head", "http://", "head:port", "http://a:b@head:1", "h?"])
def test_invalid_addresses(given: str) -> None:
    """An invalid address is a usage error, which does not repeat a password."""
    with pytest.raises(UsageError) as error:
        Dashboard.at(given)
    assert "a:b" not in error.value.message


def test_addresses_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, then this machine; `auto` counts as none."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert Dashboard.at("").address == Dashboard.at("auto").address == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://a:1")
    assert Dashboard.at("auto").address == "http://a:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "b:2")
    assert Dashboard.at(None).address == "http://b:2"
    assert Dashboard.at("c:3").address == "http://c:3"


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """`serve(answer)` starts a loopback server with the responses of `answer(path, headers)`; returns its address."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary" * 6)
    servers = []

    def start(answer: Callable[[str, Any], Answer]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answer(self.path, self.headers)
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", body)
                self.end_headers()
                self.wfile.write(body.encode() if isinstance(body, str) else json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                return None

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_no_dashboard() -> None:
    """An address without a server is a ClusterError with code 4."""
    with pytest.raises(ClusterError, match=r"no Ray dashboard answers at \S+:9: Connection refused") as error:
        remote.run_on_cluster("train", DOCUMENT, Store("/nowhere"), lambda event: None, address="127.0.0.1:9")
    assert error.value.code == 4


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ((200, "<html>hello</html>"), "is not a Ray dashboard"),
        ((200, {"version": "1"}), "is not a Ray dashboard"),
        ((404, ""), "is not a Ray dashboard"),
        ((503, ""), "answers with status 503"),
        ((401, ""), "requires a token"),
        ((403, ""), "rejects the token from RAY_AUTH_TOKEN"),
        ((200, {"ray_version": "2.9.1"}), r"the cluster runs Ray 2\.9\.1, but this machine has Ray 2\.60"),
    ],
)
def test_other_answers(serve: Callable[..., str], answer: Answer, line: str) -> None:
    """Another server, another Ray and a rejected token each have their own error, with code 4 and without the token."""
    with pytest.raises(ClusterError, match=line) as error:
        preflight.raise_first_failure(remote.checks(serve(lambda path, headers: answer)))
    assert error.value.code == 4
    assert error.value.hint
    assert "canary" not in error.value.message + error.value.hint


def test_the_token_is_not_sent_to_a_redirect(serve: Callable[..., str]) -> None:
    """After a redirect, for example to a login page, the token is not sent to the new address."""
    received: list[str] = []

    def record(path: str, headers: Any) -> Answer:
        received.append(headers["Authorization"])
        return 200, {"ray_version": "2.60.0"}

    elsewhere = serve(record)
    with pytest.raises(ClusterError, match="302"):
        preflight.raise_first_failure(remote.checks(serve(lambda path, headers: (302, f"{elsewhere}{path}"))))
    assert received == []


def test_a_log_is_followed_through_lost_connections(serve: Callable[..., str]) -> None:
    """Every line arrives once although requests and log streams fail; each loss and reconnection is reported."""
    asked: list[str] = []
    lines = [f"line {n}" for n in range(6)]

    def answer(path: str, headers: Any) -> Answer:
        asked.append(path)
        if path.endswith("/version"):
            return 200, {"ray_version": "2.60.0"}
        if path.endswith("/logs"):
            available = min(len(lines), 2 * sum(p.endswith("/logs") for p in asked))
            return 200, {"logs": "\n".join(lines[:available])[: -1 if available < 6 else None]}
        if path.endswith("/tail"):
            return 500, ""
        times = asked.count(path)
        status = "SUCCEEDED" if times > 3 else "RUNNING"
        return (500, "") if times == 2 else (200, {"submission_id": "x-1", "status": status})

    notes: list[str] = []
    assert list(Jobs(Dashboard.at(serve(answer))).follow("x-1", notes.append)) == lines
    assert ["lost" in text for text in notes] == [True, False, True, False]


@pytest.mark.parametrize(
    ("status", "exit_code", "output", "last", "kind", "line"),
    [
        ("STOPPED", 130, [], {"message": "interrupted", "code": 130}, Stopped, "job x-1 was stopped"),
        ("FAILED", 6, [], {"message": "bad picture", "code": 6, "hint": "h"}, BY_CODE[6], "bad picture"),
        ("FAILED", 1, ["ModuleNotFoundError: No module named 'torch'"], None, SetupError, "has no module torch"),
        ("FAILED", 127, ["sh: 1: python: not found"], None, SetupError, "has no `python` on PATH"),
        ("FAILED", 1, ["boom"], None, remote.GenflowError, "exited without reporting an error: exit code 1$"),
        ("FAILED", -9, [], None, remote._JobDied, "exited without reporting an error: exit code 1$"),
    ],
)
def test_why_a_job_ended(status: str, exit_code: int, output: list[str], last: Any, kind: type, line: str) -> None:
    """A reported error has priority over the status; a missing module and a death by a signal have their own errors."""
    message = "exit code 1, last available logs (truncated):"
    job = {"id": "x-1", "status": status, "message": message, "exit_code": exit_code}
    error = remote._job_error(job, {"event": "error", **last} if last else None, deque(output))
    assert type(error) is kind
    with pytest.raises(kind, match=line):
        raise error
