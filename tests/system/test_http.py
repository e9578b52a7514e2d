"""The HTTP client: which results are responses, and which requests use a proxy."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from genflow import client
from genflow.cli.app import app
from genflow.errors import GenflowError
from genflow.launch.ray_dashboard import Dashboard
from genflow.launch.ray_jobs import Jobs
from genflow.serving import endpoints
from genflow.system import environment, http
from jobs import probe, serve

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
HERE = ["127.0.0.1", "127.8.9.10", "127.1", "localhost", "LocalHost"]


class Server:
    """Listens on the loopback interface, records requests, and gives the same response to all of them."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str], host: str = "127.0.0.1") -> None:
        self.requests: list[str] = []
        self.received_headers: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.requests.append(f"{self.command} {self.path}")
                server.received_headers.append(str(self.headers))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return self.answer
                raise AttributeError(name)

            def log_message(self, *_: Any) -> None:
                return None

        class Listener(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self._http = Listener((host, 0), Handler)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def listen() -> Iterator[Callable[..., Server]]:
    """`listen(status, body, headers, host)` starts a server."""
    servers = []

    def start(status: int = 200, body: bytes = b"{}", headers: Any = None, host: str = "127.0.0.1") -> Server:
        servers.append(Server(status, body, headers or {}, host))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def proxy(listen: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> Server:
    """A proxy that responds to all requests itself. The environment names it for all schemes."""
    for name in VARIABLES:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    server = listen(200, b'{"from": "the proxy"}')
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.port}")
    return server


@pytest.mark.parametrize("host", HERE)
def test_requests_to_this_machine_use_no_proxy(host: str, listen: Callable[..., Server], proxy: Server) -> None:
    """A request to 127.0.0.0/8 or localhost reaches the server and not the proxy."""
    server = listen(200, b'{"from": "the server"}', host=host if host == "127.8.9.10" else "127.0.0.1")
    assert http.request(f"http://{host}:{server.port}/x").json() == {"from": "the server"}
    assert server.requests == ["GET /x"]
    assert proxy.requests == []


def test_requests_to_this_machine_by_ipv6_use_no_proxy(listen: Callable[..., Server], proxy: Server) -> None:
    """A request to ::1 reaches the server and not the proxy."""
    try:
        server = listen(host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert http.request(f"http://[::1]:{server.port}/x").ok
    assert server.requests == ["GET /x"]
    assert proxy.requests == []


def test_requests_to_other_machines_use_the_proxy(proxy: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests to other hosts use the environment's proxy, except for hosts in NO_PROXY."""
    assert http.request("http://head.invalid:8265/x").json() == {"from": "the proxy"}
    assert proxy.requests == ["GET http://head.invalid:8265/x"]
    monkeypatch.setenv("NO_PROXY", "head.invalid")
    with pytest.raises(http.RequestFailed):
        http.request("http://head.invalid:8265/x")


@pytest.mark.parametrize(
    "host",
    [*HERE, "127.0.0.1:8265", "localhost:1", "[::1]", "[::1]:1", "::1", "::1:80", "[::ffff:127.0.0.1]:1", "0.0.0.0:1"],
)
def test_loopback_hosts(host: str) -> None:
    """Loopback: all spellings of 127.0.0.0/8, ::1, localhost and the unspecified address, with or without a port."""
    assert http.is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", None, "head", "head:127", "10.0.0.1", "128.0.0.1:8265", "localhost.example", "127.0.0.1.example",
             "127.0.0.1@head", "[fe80::1]:1", "my-localhost"],
)  # fmt: skip
def test_hosts_that_are_not_loopback(host: str | None) -> None:
    """A host name that only resembles a loopback address is not loopback."""
    assert not http.is_loopback(host)


def test_no_caller_uses_a_proxy_for_this_machine(listen: Callable[..., Server], proxy: Server) -> None:
    """Dashboard, endpoints, client, MLflow probe and endpoint watch do not use a proxy for this machine."""
    server = listen(200, b'{"data": []}')
    address = f"http://127.0.0.1:{server.port}"
    Dashboard(address).request("/dashboard")
    client.Client(address, key="secret").models()
    assert endpoints.is_healthy(address)
    assert probe.mlflow_problem(address) == ""
    assert serve.get_json(f"{address}/serve") == (200, {"data": []})
    assert server.requests == ["GET /dashboard", "GET /v1/models", "GET /healthz", "GET /health", "GET /serve"]
    assert proxy.requests == []


def test_rays_client_uses_no_proxy_for_this_machine(
    listen: Callable[..., Server], proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's client does not send the token to the proxy, although `requests` only reads NO_PROXY."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary" * 6)
    monkeypatch.setenv("no_proxy", "")  # so that monkeypatch restores it at the end
    monkeypatch.setenv("NO_PROXY", "")
    server = listen(200, b'{"ray_version": "2.60.0", "version": "4"}')
    jobs = Jobs(Dashboard(f"http://127.0.0.1:{server.port}"))
    assert jobs._client().get_version() == "4"
    assert server.requests
    assert proxy.requests == []
    monkeypatch.setattr(environment, "LOOPBACK", ())
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(GenflowError):
        jobs._client()
    assert "canary" in proxy.received_headers[0]


def test_no_proxy_is_extended(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_PROXY is extended and never replaced; `*` is kept; without a proxy it is not set."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
        monkeypatch.delenv(name.upper(), raising=False)
    environment.keep_loopback_direct()
    assert "NO_PROXY" not in environment.os.environ
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "intranet, .example")
    environment.keep_loopback_direct()
    environment.keep_loopback_direct()
    assert environment.os.environ["NO_PROXY"] == "intranet,.example,localhost,127.0.0.1,127.0.0.0/8,::1"
    assert environment.os.environ["no_proxy"] == environment.os.environ["NO_PROXY"]
    monkeypatch.setenv("no_proxy", "*")
    environment.keep_loopback_direct()
    assert environment.os.environ["NO_PROXY"] == "*"


@pytest.mark.parametrize("status", [201, 302, 404, 503])
def test_every_status_is_a_response(status: int, listen: Callable[..., Server]) -> None:
    """Redirects are not followed, and the body and headers of an error can be read."""
    server = listen(status, b"text", {"Location": "/elsewhere", "Retry-After": "7"})
    answer = http.request(f"http://127.0.0.1:{server.port}/x", data=b"{}", headers={"Authorization": "secret"})
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (status, b"text", "7")
    assert answer.ok is (status == 201)
    assert server.requests == ["POST /x"]
    with pytest.raises(ValueError, match="Expecting value"):
        answer.json()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/", "Connection refused"),
        ("file:///etc/hostname", "unknown url type: file"),
        ("ftp://127.0.0.1/", "unknown url type: ftp"),
        ("http://127.0.0.1:port/", "nonnumeric port"),
    ],
)
def test_a_request_without_a_response(url: str, reason: str) -> None:
    """A request without a response raises one error with the reason; file URLs are not read."""
    with pytest.raises(http.RequestFailed, match=reason):
        http.request(url)


def test_a_silent_server_times_out() -> None:
    """A silent server ends the request with the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(http.RequestFailed, match="timed out"):
        http.request(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.05)


COMMANDS = [
    ["jobs", "ls"],
    ["jobs", "logs", "x-1"],
    ["jobs", "stop", "x-1"],
    ["jobs", "attach", "x-1"],
    ["cluster", "status"],
    ["doctor", "--cluster"],
    ["prepare", "digits", "--cluster"],
    ["sample", "flow", "--endpoint", "ADDRESS"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments[:2]))
def test_no_command_uses_a_proxy_for_this_machine(
    arguments: list[str], listen: Callable[..., Server], proxy: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each command that sends requests to this machine reaches the server there, and the proxy sees none."""
    jobs = [{"submission_id": "x-1", "status": "STOPPED", "ray_version": "2.60.0", "version": "4"}]
    server = listen(200, json.dumps(jobs).encode())
    address = f"http://127.0.0.1:{server.port}"
    for name in ("no_proxy", "NO_PROXY"):  # so that monkeypatch restores both
        monkeypatch.setenv(name, "example.org")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary" * 6)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    monkeypatch.setenv("GENFLOW_API_KEY", "canary" * 6)
    monkeypatch.setenv("GENFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, [argument.replace("ADDRESS", address) for argument in arguments])
    assert server.requests
    assert proxy.requests == []


def test_mlflows_client_uses_no_proxy_for_this_machine(
    listen: Callable[..., Server], proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's `requests` sends the password of a local server to that server only."""
    import mlflow

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.org")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "canary")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary")
    server = listen(200, b'{"experiments": []}')
    environment.set_defaults()
    tracking = mlflow.MlflowClient(f"http://127.0.0.1:{server.port}")
    assert list(tracking.search_experiments()) == []
    assert server.requests
    assert proxy.requests == []
