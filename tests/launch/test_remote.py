"""What travels to a cluster, and what a command makes of a dashboard's answers."""

import json
import os
import shutil
import subprocess
import sys
import threading
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


def test_a_parcel_is_the_repository_in_small(tmp_path: Path) -> None:
    """The three folders and the recipe, as the repository lays them out, and no compiled file."""
    made = tree(bundle.write(DOCUMENT, tmp_path / "parcel"))
    assert {name.partition("/")[0] for name in made} == {"genflow", "jobs", "pipelines", "recipe.yaml"}
    assert {"genflow/launch/remote.py", "jobs/train.py"} <= made.keys()
    assert not [name for name in made if name.endswith(".pyc") or "_home" in name]
    program = "import json; from pathlib import Path; from genflow.recipe.files import read;"
    program += "print(json.dumps(read(Path('recipe.yaml'))))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "parcel", capture_output=True, check=True)
    assert json.loads(done.stdout) == DOCUMENT


def test_a_wheel_sends_the_same_parcel(tmp_path: Path) -> None:
    """From a wheel, where jobs/ lies in genflow/_home, the parcel is the same, byte by byte, and has the same name."""
    site, ignore = tmp_path / "site", shutil.ignore_patterns("__pycache__")
    shutil.copytree(source_hash.PACKAGE, site / "genflow", ignore=ignore)
    for room in ("jobs", "pipelines"):
        shutil.copytree(source_hash.resources_dir() / room, site / "genflow/_home" / room, ignore=ignore)
    program = (
        "import json, sys; from pathlib import Path; from genflow.launch import bundle; d = json.loads(sys.argv[1]);"
        "bundle.write(d, Path(sys.argv[2])); print(bundle.identity(d))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, json.dumps(DOCUMENT), str(tmp_path / "wheel")],
        env={**os.environ, "PYTHONPATH": str(site)}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert tree(tmp_path / "wheel") == tree(bundle.write(DOCUMENT, tmp_path / "checkout"))
    assert done.stdout.strip() == bundle.identity(DOCUMENT)


def test_a_parcel_stays_in_the_store(store: Store) -> None:
    """Sent twice, it is kept once; nothing half-written stays beside it."""
    first = bundle.save(DOCUMENT, store, "train-1")
    assert bundle.save(DOCUMENT, store, "train-1") == first
    assert [entry.name for entry in (store.root / "parcels").iterdir()] == ["train-1"]


def test_a_parcel_that_is_too_large_names_the_largest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's data among the sources is refused before Ray refuses it."""
    monkeypatch.setattr(bundle, "MAX_BYTES", 1000)
    with pytest.raises(ResourceError, match=r"the largest files: (genflow|jobs)/\S+ \(\d+ kB\)"):
        bundle.write(DOCUMENT, tmp_path)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.example/team", "https://ray.example/team"),
        ("head", "http://head:8265"),
        (" head:1234 ", "http://head:1234"),
        ("[::1]:1234", "http://[::1]:1234"),
    ],
)
def test_addresses(given: str, meant: str) -> None:
    """A dashboard's address may be given with or without scheme and port."""
    assert Dashboard.at(given).address == meant


@pytest.mark.parametrize("given", ["ray://head:10001", "ftp://head", "http://", "head:port", "http://a:b@head:1", "h?"])
def test_what_is_no_address(given: str) -> None:
    """What cannot be a dashboard is a usage error; a password is not repeated."""
    with pytest.raises(UsageError) as error:
        Dashboard.at(given)
    assert "a:b" not in error.value.message


def test_addresses_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, then this machine; `auto` says nothing."""
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
    """`serve(answer)` listens on the loopback and answers as `answer(path, headers)` says; its address."""
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


def test_nobody_answers() -> None:
    """An address where nobody listens ends with code 4, in one line."""
    with pytest.raises(ClusterError, match=r"no Ray dashboard answers at \S+:9: Connection refused") as error:
        remote.run_on_cluster("train", DOCUMENT, Store("/nowhere"), lambda event: None, address="127.0.0.1:9")
    assert error.value.code == 4


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ((200, "<html>hello</html>"), "is not Ray's dashboard"),
        ((200, {"version": "1"}), "is not Ray's dashboard"),
        ((404, ""), "is not Ray's dashboard"),
        ((503, ""), "answers 503"),
        ((401, ""), "asks for a token"),
        ((403, ""), "refuses the token of RAY_AUTH_TOKEN"),
        ((200, {"ray_version": "2.9.1"}), r"the cluster runs Ray 2\.9\.1, and this genflow Ray 2\.60"),
    ],
)
def test_whoever_else_answers(serve: Callable[..., str], answer: Answer, line: str) -> None:
    """Another server, an old Ray, a refusal: each is one line of its own, with code 4, without the token."""
    with pytest.raises(ClusterError, match=line) as error:
        preflight.raise_first_failure(remote.checks(serve(lambda path, headers: answer)))
    assert error.value.code == 4
    assert error.value.hint
    assert "canary" not in error.value.message + error.value.hint


def test_the_token_is_not_passed_on(serve: Callable[..., str]) -> None:
    """A dashboard that points elsewhere, as a login page does, does not get the token sent there."""
    heard: list[str] = []

    def listen(path: str, headers: Any) -> Answer:
        heard.append(headers["Authorization"])
        return 200, {"ray_version": "2.60.0"}

    elsewhere = serve(listen)
    with pytest.raises(ClusterError, match="302"):
        preflight.raise_first_failure(remote.checks(serve(lambda path, headers: (302, f"{elsewhere}{path}"))))
    assert heard == []


def test_a_log_is_followed_through_lost_connections(serve: Callable[..., str]) -> None:
    """Every line arrives once, though the dashboard fails on the way and no tail holds; the loss and the return are
    told."""
    asked: list[str] = []
    lines = [f"line {n}" for n in range(6)]

    def answer(path: str, headers: Any) -> Answer:
        asked.append(path)
        if path.endswith("/version"):
            return 200, {"ray_version": "2.60.0"}
        if path.endswith("/logs"):
            shown = min(len(lines), 2 * sum(p.endswith("/logs") for p in asked))
            return 200, {"logs": "\n".join(lines[:shown])[: -1 if shown < 6 else None]}
        if path.endswith("/tail"):
            return 500, ""
        times = asked.count(path)
        status = "SUCCEEDED" if times > 3 else "RUNNING"
        return (500, "") if times == 2 else (200, {"submission_id": "x-1", "status": status})

    told: list[str] = []
    assert list(Jobs(Dashboard.at(serve(answer))).follow("x-1", told.append)) == lines
    assert ["lost" in text for text in told] == [True, False, True, False]


@pytest.mark.parametrize(
    ("status", "code_", "said", "last", "kind", "line"),
    [
        ("STOPPED", 130, [], {"message": "interrupted", "code": 130}, Stopped, "job x-1 was stopped"),
        ("FAILED", 6, [], {"message": "bad picture", "code": 6, "hint": "h"}, BY_CODE[6], "bad picture"),
        ("FAILED", 1, ["ModuleNotFoundError: No module named 'torch'"], None, SetupError, "`python` lacks torch"),
        ("FAILED", 127, ["sh: 1: python: not found"], None, SetupError, "finds no `python`"),
        ("FAILED", 1, ["boom"], None, remote.GenflowError, "died without a word: exit code 1$"),
        ("FAILED", -9, [], None, remote._JobDied, "died without a word: exit code 1$"),
    ],
)
def test_why_a_job_ended(status: str, code_: int, said: list[str], last: Any, kind: type, line: str) -> None:
    """The job's own word counts before its status; a missing module is named; a death by a signal is told apart."""
    message = "exit code 1, last available logs (truncated):"
    job = {"id": "x-1", "status": status, "message": message, "exit_code": code_}
    error = remote._job_error(job, {"event": "error", **last} if last else None, remote.deque(said))
    assert type(error) is kind
    with pytest.raises(kind, match=line):
        raise error
