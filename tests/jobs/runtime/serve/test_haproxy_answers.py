"""A running HAProxy with genflow's configuration: its answers to bad HTTP, and the address that replicas see."""

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest
import uvicorn
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from genflow.serving import app as http_app
from genflow.serving.middleware import Limits, hash_key
from genflow.system import ports
from jobs.runtime.serve import haproxy

pytestmark = pytest.mark.skipif(not haproxy.available(), reason="only Ray's wheels for Linux contain HAProxy")

Answer = tuple[int, dict[str, Any]]
KEY = "a key of this test"
WEBSOCKET = b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
TOO_LARGE = b"Content-Type: application/json\r\nContent-Length: 1200000\r\n\r\n" + b"x" * 1_200_000
HEAD = b"Host: 127.0.0.1\r\nConnection: close\r\n"
POST = b"POST / HTTP/1.1\r\n" + HEAD


class Replica(BaseHTTPRequestHandler):
    """Answers with the forwarded addresses; /broken gets bytes that are not HTTP."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer one request."""
        if self.path == "/broken":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
            self.close_connection = True
            return
        body = json.dumps({"from": self.headers.get_all("X-Forwarded-For")}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Answer]]:
    """`ask(bytes)` sends bytes to HAProxy in front of `Replica`, of a dead one, or of genflow's app with a key."""
    folder = tmp_path_factory.mktemp("haproxy")
    replica = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    Thread(target=replica.serve_forever, daemon=True).start()
    app = uvicorn.Server(uvicorn.Config(_app_with_a_key(), port=ports.free_port(), log_level="error"))
    Thread(target=app.run, daemon=True).start()
    binary, running, fronts = haproxy.available(), [], {}
    with haproxy.haproxy_variables(binary, "127.0.0.1", 160) as variables, pytest.MonkeyPatch.context() as patch:
        patch.setattr(haproxy, "REQUEST_S", 1)
        errors = str(Path(variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent)
        behind = {"replica": replica.server_port, "dead": ports.free_port(), "app": app.config.port}
        for to, port in behind.items():
            fronts[to] = ports.free_port()
            path = folder / f"{to}.cfg"
            _write(path, fronts[to], port)
            config = path.read_text(encoding="utf-8")
            config = config.replace("tune.bufsize 16384", f"tune.bufsize {haproxy.BUFFER_BYTES}")
            # without health checks, so that a busy machine does not take the app for dead
            config = re.sub(r"(?m)^( +server \S+ \S+) check.*$", r"\1", config)
            config = re.sub(r"(?m)^ +default-server .*\n", "", config)
            path.write_text(haproxy.adapt_config(config, errors, "127.0.0.1", 160), encoding="utf-8")
            running.append(subprocess.Popen([binary, "-db", "-f", str(path)], stderr=subprocess.DEVNULL))
        for port in (*fronts.values(), app.config.port):
            _wait(port)
        yield lambda request, to="replica": _send(fronts[to], request)
        for process in running:
            process.terminate()
            process.wait()
    app.should_exit = True
    replica.shutdown()
    replica.server_close()


def _app_with_a_key() -> Any:
    """The app of a replica, which needs a key, without models."""
    return http_app.create(cast(Any, None), Limits(keys=(hash_key(KEY),)))


def _write(path: Path, port: int, replica: int) -> None:
    folder = path.parent
    config = HAProxyConfig(http_options=HTTPOptions(host="127.0.0.1", port=port), socket_path=str(folder / f"{port}"),
                           server_state_base=str(folder), server_state_file=str(folder / "state"))  # fmt: skip
    backend = BackendConfig("http-mine", "/", servers=[ServerConfig("replica", "127.0.0.1", replica)], app_name="mine",
                            fallback_server=ServerConfig("ray", "127.0.0.1", replica))  # fmt: skip
    HAProxyApi(config, {"http-mine": backend}, str(path))._generate_config_file_internal()


def _wait(port: int) -> None:
    end = time.monotonic() + 30
    while ports.is_free(port):
        assert time.monotonic() < end
        time.sleep(0.02)


def _send(port: int, request: bytes) -> Answer:
    """Send bytes; return the status and the document of the answer."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), {} if b"text/html" in head else json.loads(body)


@pytest.mark.parametrize(
    ("path", "rest", "status"),
    [
        ("/", b"Content-Length: 9\r\n\r\nslow", 408),
        ("/", b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", 408),
        ("/broken", b"\r\n", 503),
    ],
)
def test_an_answer_of_haproxy_is_genflows_json(
    ask: Callable[..., Answer], path: str, rest: bytes, status: int
) -> None:
    """For slow bodies and broken answers of a replica, HAProxy's own answer has genflow's error format."""
    got, document = ask(f"GET {path} HTTP/1.1\r\n".encode() + HEAD + rest)
    assert set(document["error"]) == {"code", "field", "message", "hint", "request"}
    assert got == status


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nNo colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2000 + b"\r\n", 400),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: slow", 408),
    ],
)
def test_bytes_that_are_not_http_are_refused(ask: Callable[..., Answer], request_: bytes, status: int) -> None:
    """HAProxy answers what it cannot parse with a text of its own, which it does not let a configuration change."""
    assert ask(request_) == (status, {})


@pytest.mark.parametrize(
    ("line", "rest", "status"),
    [
        (b"BREW /", b"", 501),
        (b"OPTIONS *", b"", 501),
        (b"GET /" + b"a" * 100_000, b"", 414),
        (b"GET /" + b"a" * 3_000, b"", 414),
        (b"GET /v1/models", b"X: " + b"a" * 20_000 + b"\r\n", 431),
        (b"GET /v1/models", b"X: " + b"a" * 100_000 + b"\r\n", 431),
        (b"GET /nothing", b"", 404),
        (b"GET /v1/models/flow/samples", b"", 405),
        (b"DELETE /v1/models", b"", 405),
        (b"PUT /v1/models", b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", 405),
        (b"POST /v1/images/generations", b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415),
        (b"POST /v1/images/generations", b"Content-Length: 2\r\n\r\n{}", 415),
        (b"POST /v1/images/generations", TOO_LARGE, 413),
        (b"GET /v1/nothing", WEBSOCKET, 404),
    ],
)  # fmt: skip
def test_bad_http_to_the_app_is_answered_with_json(
    ask: Callable[..., Answer], line: bytes, rest: bytes, status: int
) -> None:
    """Bad requests have their own status and genflow's error format, from HAProxy or from the app behind it."""
    key = b"X-API-Key: " + KEY.encode() + b"\r\n"
    connection = b"Connection: close, Upgrade\r\n" if b"Upgrade" in rest else b"Connection: close\r\n"
    head = line + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n" + connection + key + rest
    got, document = ask(head if b"\r\n\r\n" in rest else head + b"\r\n", to="app")
    assert set(document["error"]) == {"code", "field", "message", "hint", "request"}
    assert document["error"]["code"] != "error"
    assert got == status


def test_a_forged_address_does_not_pass_the_limit_of_wrong_keys(ask: Callable[..., Answer]) -> None:
    """Wrong keys end in 429, although each request claims to come from another address; the right key passes."""
    line = b"GET /v1/nothing HTTP/1.1\r\n" + HEAD
    wrong = [line + f"X-Forwarded-For: 1.2.3.{i}\r\nX-API-Key: wrong {i}\r\n\r\n".encode() for i in range(40)]
    statuses = [ask(request, to="app")[0] for request in wrong]
    assert (statuses[0], statuses[-1]) == (401, 429)
    assert ask(line + b"X-API-Key: " + KEY.encode() + b"\r\n\r\n", to="app")[0] == 404


def test_without_a_replica_the_answer_is_genflows_json(ask: Callable[..., Answer]) -> None:
    """With no replica that answers, HAProxy answers 503 in genflow's error format."""
    status, document = ask(b"GET / HTTP/1.1\r\n" + HEAD + b"\r\n", to="dead")
    assert status == 503
    assert document["error"]["code"] == "overloaded"


@pytest.mark.parametrize("forged", ["1.2.3.4", "1.2.3.4, 5.6.7.8", "127.0.0.1"])
def test_a_forged_address_does_not_reach_the_replica(ask: Callable[..., Answer], forged: str) -> None:
    """The replica gets the address of the connection, regardless of what the client claims."""
    lines = f"X-Forwarded-For: {forged}\r\nx-forwarded-for: {forged}\r\n".encode()
    assert ask(b"GET / HTTP/1.1\r\n" + HEAD + lines + b"\r\n") == (200, {"from": ["127.0.0.1"]})
