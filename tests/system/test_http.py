"""The one HTTP helper: what is an answer, and which requests a proxy gets to see."""

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from genflow import client
from genflow.errors import GenflowError
from genflow.launch.ray_dashboard import Dashboard
from genflow.launch.ray_jobs import Jobs
from genflow.serving import endpoints
from genflow.system import environment, http
from jobs import probe, serve

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
HERE = ["127.0.0.1", "127.8.9.10", "127.1", "localhost", "LocalHost"]


class Server:
    """Listens on the loopback, writes down what it is asked, and gives one answer to everything."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str], host: str = "127.0.0.1") -> None:
        self.asked: list[str] = []
        self.carried: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.asked.append(f"{self.command} {self.path}")
                server.carried.append(str(self.headers))
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
    """A proxy that answers everything itself, named in the environment as everybody's."""
    for name in VARIABLES:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    server = listen(200, b'{"from": "the proxy"}')
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.port}")
    return server


@pytest.mark.parametrize("host", HERE)
def test_this_machine_is_asked_directly(host: str, listen: Callable[..., Server], proxy: Server) -> None:
    """A request to 127/8 or localhost reaches the server there, and no proxy."""
    server = listen(200, b'{"from": "the server"}', host=host if host == "127.8.9.10" else "127.0.0.1")
    assert http.request(f"http://{host}:{server.port}/x").json() == {"from": "the server"}
    assert server.asked == ["GET /x"]
    assert proxy.asked == []


def test_this_machine_by_ipv6_is_asked_directly(listen: Callable[..., Server], proxy: Server) -> None:
    """A request to ::1 reaches the server there, and no proxy."""
    try:
        server = listen(host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert http.request(f"http://[::1]:{server.port}/x").ok
    assert server.asked == ["GET /x"]
    assert proxy.asked == []


def test_other_machines_are_asked_through_the_proxy(proxy: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxy is used for all other hosts but those of NO_PROXY, so the tests above can fail."""
    assert http.request("http://head.invalid:8265/x").json() == {"from": "the proxy"}
    assert proxy.asked == ["GET http://head.invalid:8265/x"]
    monkeypatch.setenv("NO_PROXY", "head.invalid")
    with pytest.raises(http.RequestFailed):
        http.request("http://head.invalid:8265/x")


@pytest.mark.parametrize(
    "host",
    [*HERE, "127.0.0.1:8265", "localhost:1", "[::1]", "[::1]:1", "::1", "::1:80", "[::ffff:127.0.0.1]:1", "0.0.0.0:1"],
)
def test_what_is_this_machine(host: str) -> None:
    """127/8 in each of its spellings, ::1, localhost and the unspecified address; with a port or without."""
    assert http.is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", None, "head", "head:127", "10.0.0.1", "128.0.0.1:8265", "localhost.example", "127.0.0.1.example",
             "127.0.0.1@head", "[fe80::1]:1", "my-localhost"],
)  # fmt: skip
def test_what_is_another_machine(host: str | None) -> None:
    """A name that merely looks like the loopback is another machine's."""
    assert not http.is_loopback(host)


def test_every_caller_asks_this_machine_directly(listen: Callable[..., Server], proxy: Server) -> None:
    """The dashboard, the endpoints, the client, the probe of MLflow and the watch of an endpoint: none uses a proxy."""
    server = listen(200, b'{"data": []}')
    address = f"http://127.0.0.1:{server.port}"
    Dashboard(address).ask("/dashboard")
    client.Client(address, key="secret").models()
    assert endpoints.is_healthy(address)
    assert probe.silent(address) == ""
    assert serve.get_json(f"{address}/serve") == (200, {"data": []})
    assert server.asked == ["GET /dashboard", "GET /v1/models", "GET /healthz", "GET /health", "GET /serve"]
    assert proxy.asked == []


def test_rays_own_client_asks_this_machine_directly(
    listen: Callable[..., Server], proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's client would send the token to the proxy: `requests` knows the loopback by NO_PROXY alone."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary" * 6)
    monkeypatch.setenv("no_proxy", "")  # what is set here is taken back at the end
    monkeypatch.setenv("NO_PROXY", "")
    server = listen(200, b'{"ray_version": "2.60.0", "version": "4"}')
    jobs = Jobs(Dashboard(f"http://127.0.0.1:{server.port}"))
    assert jobs._client().get_version() == "4"
    assert server.asked
    assert proxy.asked == []
    monkeypatch.setattr(environment, "LOOPBACK", ())
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(GenflowError):
        jobs._client()
    assert "canary" in proxy.carried[0]


def test_the_hosts_that_a_person_keeps_from_the_proxy_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_PROXY is extended, never replaced; `*` already names all hosts; without a proxy nothing is set."""
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
def test_every_status_is_an_answer(status: int, listen: Callable[..., Server]) -> None:
    """A redirect is not followed, and an error's body and headers can be read."""
    server = listen(status, b"words", {"Location": "/elsewhere", "Retry-After": "7"})
    answer = http.request(f"http://127.0.0.1:{server.port}/x", data=b"{}", headers={"Authorization": "secret"})
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (status, b"words", "7")
    assert answer.ok is (status == 201)
    assert server.asked == ["POST /x"]
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
def test_no_answer(url: str, reason: str) -> None:
    """There is one error for all of them, and its text is the reason; files are not read."""
    with pytest.raises(http.RequestFailed, match=reason):
        http.request(url)


def test_a_server_that_says_nothing() -> None:
    """The wait ends with the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(http.RequestFailed, match="timed out"):
        http.request(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.05)
