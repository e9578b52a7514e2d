"""Ray Serve, started by the command: kills, changes of models, and the end, under load."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from benchmarks.abuse import replicas, workers
from genflow.data import preview
from genflow.sampling.engine import Engine, labels_for
from genflow.serving import endpoints
from genflow.serving.model_list import ServedModel
from genflow.storage.mirror import CHECKSUM, checksum
from genflow.storage.store import Store

pytestmark = pytest.mark.ray
ModelStore = tuple[Store, list[ServedModel]]


def command(store: Store, *args: str) -> list[str]:
    return [sys.executable, "-c", "from genflow.cli.app import main; main()", *args]


def environment(store: Store) -> dict[str, str]:
    return {**os.environ, "GENFLOW_STORE": str(store.root), "PYTHONPATH": str(ROOT)}


def genflow(store: Store, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(store, *args), env=environment(store), capture_output=True, timeout=240, encoding="utf-8"
    )


def until(condition: Callable[[], bool], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.1)


class Endpoint:
    """The endpoint that the command serves, with its processes."""

    def __init__(self, process: "subprocess.Popen[str]", address: str, metrics: str) -> None:
        self.process, self.address, self.metrics = process, address, metrics

    def ask(self, path: str, body: Any = None, timeout: float = 90) -> tuple[int, bytes, dict[str, str]]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    def replicas(self) -> list[int]:
        """Return the process ids of the replicas."""
        return replicas("tested")

    def workers(self) -> list[int]:
        """Return the process ids of the engine processes."""
        return workers("tested")

    def drawn(self) -> float:
        """The CPU seconds of those that draw, once none of them draws any more."""
        before, spent = -1.0, 0.0
        while spent - before > 0.05:
            time.sleep(0.5)
            before, spent = spent, sum(map(cpu_seconds, self.workers()))
        return spent


@pytest.fixture(scope="module")
def endpoint(
    model_store: ModelStore, captioned_store: tuple[Store, list[ServedModel], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Endpoint]:  # fmt: skip
    store, _ = model_store
    words = captioned_store[1][0]
    shutil.copytree(words.path, store.folder("runs", words.run))
    log = tmp_path_factory.mktemp("serve") / "log"
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command(store, "serve", "flow", "vae", words.run, "--name", "tested", "--port", "0", "--replicas", "2"),
            env=environment(store), stdout=file, stderr=file, text=True, encoding="utf-8",
        )  # fmt: skip
    try:
        end = time.monotonic() + 240
        while not (match := re.search(r"playground (\S+)/ .* metrics (\S+)", log.read_text(encoding="utf-8"))):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < end, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        yield Endpoint(process, match[1], match[2])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=120)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module", autouse=True)
def slow(endpoint: Endpoint) -> Iterator[socket.socket]:
    """A client that never ends its headers. It begins with the first test, so that nothing waits for it."""
    host, port = endpoint.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        yield client


class Load:
    """Sends requests from several threads, and records the responses.

    With `prompts`, every second thread sends another prompt in every request, which the text encoder embeds.
    """

    def __init__(self, endpoint: Endpoint, threads: int = 3, *, prompts: bool = False) -> None:
        self.endpoint, self.answers, self._stop = endpoint, [], threading.Event()  # type: ignore[var-annotated]
        self._prompts = prompts
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(threads)]

    def _run(self, seed: int) -> None:
        count = 0
        while not self._stop.is_set():
            asked: dict[str, Any] = {"n": 2, "seed": seed}
            if reads := self._prompts and seed % 2:
                count += 1
                asked |= {"prompt": [f"a red apple {count}", "a blue tiger"], "format": "json", "n": 2}
            try:
                status, body, _ = self.endpoint.ask(f"/v1/models/{'words' if reads else 'flow'}/samples", asked)
                if reads and status == 200:
                    body = json.loads(body)["images"][1].encode()  # of the prompt that is always the same
            except OSError as error:
                status, body = 0, repr(error).encode()
            self.answers.append((seed, status, body))
            time.sleep(0.05)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=120)

    def more(self, count: int) -> None:
        """Wait until so many more requests are answered."""
        enough = len(self.answers) + count
        until(lambda: len(self.answers) >= enough)

    def all_answered(self) -> bool:
        """Whether every request was answered, and always with the same samples for the same seed."""
        wrong = [(status, body[:200]) for _, status, body in self.answers if status != 200]
        assert not wrong, wrong[:3]
        return len({(seed, body) for seed, _, body in self.answers}) == len(self._threads)


def test_samples_equal_the_engine(endpoint: Endpoint, model_store: ModelStore) -> None:
    """Samples that pass the proxy and a replica equal those of `genflow sample` to the byte."""
    store, listed = model_store
    engine = Engine.load(store.find("runs", listed[0].run))
    drawn = engine.draw(range(5, 12), labels_for("all", 7, engine.facts))
    status, body, headers = endpoint.ask("/v1/models/flow/samples", {"n": 7, "seed": 5})
    assert status == 200
    assert body == preview.render(drawn.images, engine.facts, preview.columns(engine.facts))
    assert headers["x-genflow-request"] == headers["x-request-id"]


def test_events_arrive_one_by_one(endpoint: Endpoint) -> None:
    """A stream has a frame for each evaluation, then the samples."""
    status, body, headers = endpoint.ask("/v1/models/flow/samples/stream", {"n": 1, "steps": 3})
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert re.findall(r"^event: (\w+)", body.decode(), re.MULTILINE) == ["step", "step", "step", "done"]


def test_errors_keep_their_format(endpoint: Endpoint) -> None:
    """An error of a replica passes the proxy unchanged."""
    status, body, _ = endpoint.ask("/v1/models/flow/samples", {"steps": 0})
    assert (status, json.loads(body)["error"]["field"]) == (422, "steps")


@pytest.mark.parametrize(
    ("line", "rest", "status"),
    [
        ("GET /nothing", "", 404),
        ("DELETE /v1/models", "", 405),
        ("POST /v1/models/flow/samples", "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415),
        (f"GET /{'a' * 100_000}", "", 414),
        ("GET /v1/models", f"X: {'a' * 100_000}\r\n", 431),
        ("BREW /", "", 501),
        ("OPTIONS *", "", 501),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_http_is_answered_with_json(endpoint: Endpoint, line: str, rest: str, status: int) -> None:
    """Whichever part of the way refuses a request, the answer has genflow's error format."""
    host, port = endpoint.address.removeprefix("http://").split(":")
    head = f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{rest}"
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall((head if "\r\n\r\n" in rest else f"{head}\r\n").encode())
        answer = client.makefile("rb").read()
    assert int(answer.split()[1]) == status
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) >= {"code", "message", "hint"}


def test_only_the_loopback_is_open(endpoint: Endpoint) -> None:
    """The port is open on the loopback address only."""
    port = int(endpoint.address.rpartition(":")[2])
    lines = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:]]
    mine = {fields[1] for fields in lines if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")}
    assert mine == {f"0100007F:{port:04X}"}


def test_disconnected_clients_free_their_places(endpoint: Endpoint) -> None:
    """A long request is cancelled when its client disconnects: the engine processes compute less than half of it."""
    host, port = endpoint.address.removeprefix("http://").split(":")
    asked = {"n": 1024, "steps": 19, "sampler": "midpoint", "guidance": 2.0}
    start = endpoint.drawn()
    assert [endpoint.ask("/v1/models/flow/samples", asked)[0] for _ in range(4)] == [200] * 4
    whole = (endpoint.drawn() - start) / 4
    body = json.dumps(asked).encode()
    head = "POST /v1/models/flow/samples HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    start = endpoint.drawn()
    for _ in range(24):
        with socket.create_connection((host, int(port)), timeout=120) as gone:
            gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.05)
    assert endpoint.ask("/v1/models/flow/samples", {})[0] == 200
    assert endpoint.drawn() - start < 12 * whole


def test_a_killed_replica_loses_no_request(endpoint: Endpoint) -> None:
    """If a replica or an engine process is killed, every request is still answered with the same bytes.

    That holds for prompts, too, which the new engine process reads by its own text encoder.
    """
    with Load(endpoint, prompts=True) as load:
        for find in (endpoint.replicas, endpoint.workers):
            until(lambda: len(endpoint.workers()) == 2)
            load.more(6)
            os.kill(find()[0], signal.SIGKILL)
            load.more(12)
    assert load.all_answered()


def test_models_change_under_load(endpoint: Endpoint, model_store: ModelStore) -> None:
    """Models change without a restart or a lost request, and a broken model is rejected."""
    store, listed = model_store
    before = set(endpoint.replicas())
    broken = store.folder("runs", "broken-1")
    with Load(endpoint) as load:
        done = genflow(store, "serve", "flow", "ring", "--name", "tested")
        assert done.returncode == 0, done.stderr
        _copy_broken(Path(listed[0].path), broken)
        refused = genflow(store, "serve", "broken", "--name", "tested")
    assert load.all_answered()
    assert refused.returncode == 6, refused.stderr
    assert "is corrupt" in refused.stderr
    assert json.loads(endpoint.ask("/healthz")[1])["models"] == ["flow", "ring"]
    assert endpoint.ask("/v1/models/ring/samples", {})[0] == 200
    assert endpoint.ask("/v1/models/vae/samples", {})[0] == 404
    assert set(endpoint.replicas()) & before


def test_who_sends_headers_slowly_is_left(slow: socket.socket) -> None:
    """The connection is ended within seconds; one that has sent them is not."""
    try:
        answer = slow.recv(1000)
    except ConnectionResetError:
        answer = b""
    assert answer.partition(b"\r\n")[0] in (b"", b"HTTP/1.1 408 Request Time-out")


def _copy_broken(run: Path, to: Path) -> None:
    """Copy a run and truncate its weights."""
    shutil.copytree(run, to)
    manifest = json.loads((to / "manifest.json").read_text(encoding="utf-8")) | {"id": to.name, "name": "broken"}
    (to / "manifest.json").write_text(json.dumps({**manifest, CHECKSUM: checksum(manifest)}), encoding="utf-8")
    for file in to.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])


def test_metrics_of_the_dashboard_exist(endpoint: Endpoint) -> None:
    """Ray exports every metric that the dashboard file shows."""
    panels = json.loads((ROOT / "deploy/grafana-serving.json").read_text(encoding="utf-8"))["panels"]
    shown = {name for panel in panels for t in panel["targets"] for name in re.findall(r"ray_genflow_\w+", t["expr"])}
    until(lambda: not {name for name in shown if name not in _read(endpoint.metrics)})


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def test_the_endpoint_is_listed_and_ended(endpoint: Endpoint, model_store: ModelStore) -> None:
    """`endpoints down` answers the current requests, then closes the port and ends all processes."""
    store, _ = model_store
    listed = json.loads(genflow(store, "endpoints", "ls", "--json").stdout)["endpoints"]
    assert [(row["name"], row["models"], row["status"]) for row in listed] == [("tested", ["flow", "ring"], "well")]
    asked = {"n": 1024, "steps": 19, "sampler": "midpoint", "guidance": 2.0}  # about a second of computation each
    with ThreadPoolExecutor(16) as clients:
        under_way = [clients.submit(endpoint.ask, "/v1/models/flow/samples", asked) for _ in range(16)]
        wait(under_way, return_when=FIRST_COMPLETED)
        with subprocess.Popen(command(store, "endpoints", "down", "tested"), env=environment(store)) as down:
            until(lambda: endpoints.get(store, "tested") is None)  # the endpoint has received the signal
            assert not all(request.done() for request in under_way)
            assert down.wait(timeout=120) == 0
        assert [request.result()[0] for request in under_way] == [200] * 16
    assert endpoint.process.wait(timeout=180) == 0
    assert endpoint.replicas() == endpoint.workers() == []
    with pytest.raises(urllib.error.URLError):
        endpoint.ask("/healthz", timeout=5)
