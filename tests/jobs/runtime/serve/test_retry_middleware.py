"""The middleware in Ray's proxy: admission control before parsing."""

import asyncio
import functools
import json
from typing import Any

import pytest
import uvicorn
from uvicorn.importer import import_from_string

from jobs.runtime.serve import retry_middleware
from jobs.runtime.serve.retry_middleware import (
    AdmissionControl,
    RetryMiddleware,
    encode_error_response,
    install_header_timeout,
    is_whole_post,
    with_header_timeout,
)

POST = b"POST /v1/models/flow/samples HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (POST, True),
        (POST.replace(b"Content-Length: 2", b"content-length:2"), True),
        (POST[:-1], False),
        (POST + POST, False),
        (POST.replace(b"POST", b"GET"), False),
        (POST.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked"), False),
        (POST.replace(b"Host: x", b"Expect: 100-continue"), False),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Le", False),
        (b"", False),
    ],
)
def test_only_a_whole_request_is_rejected_before_parsing(data: bytes, whole: bool) -> None:
    """Only a complete POST counts as whole; the rest of a partial one would be parsed as another request."""
    assert is_whole_post(data) is whole


def test_the_rejection_is_a_valid_response() -> None:
    """The rejection has a status, Retry-After, a request id, and a body of the declared length."""
    head, _, body = encode_error_response(AdmissionControl(0).error(), "1f0c2a7be4d05f63").partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    assert lines[0] == "HTTP/1.1 503 Service Unavailable"
    assert int(headers["content-length"]) == len(body)
    assert int(headers["retry-after"]) >= 1
    assert json.loads(body)["error"]["request"] == headers["x-genflow-request"]


class RecordingTransport:
    """A transport that records what is written, and what reaches uvicorn's protocol."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.passed: list[bytes] = []
        outer = self

        class Protocol:
            cycle: Any = None
            transport = self

            def connection_made(self, transport: Any) -> None:
                pass

            def data_received(self, data: bytes) -> None:
                outer.passed.append(data)

        self.protocol = with_header_timeout(Protocol)()

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        pass


def test_requests_over_the_limit_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the limit a whole request is not parsed; partial requests, and requests below the limit, are."""

    async def main() -> None:
        admission = AdmissionControl(max_ongoing=1)
        monkeypatch.setattr(retry_middleware, "ADMISSION", admission)
        full, free = RecordingTransport(), RecordingTransport()
        admission.ongoing = 1
        full.protocol.data_received(POST)
        assert len(full.written) == 1
        assert full.passed == []
        full.protocol.data_received(POST[:20])
        assert full.passed == [POST[:20]]
        admission.ongoing = 0
        free.protocol.data_received(POST)
        assert (free.written, free.passed) == ([], [POST])
        full.protocol._cancel_timer()
        free.protocol._cancel_timer()

    asyncio.run(main())


@pytest.mark.parametrize("module", ["httptools_impl.HttpToolsProtocol", "h11_impl.H11Protocol"])
def test_what_is_no_request_is_answered_with_json(module: str) -> None:
    """Bytes that uvicorn cannot parse get genflow's error format, and the connection is closed."""

    async def main() -> bytes:
        config = uvicorn.Config(RetryMiddleware(None), log_config=None)
        config.load()
        protocol = with_header_timeout(import_from_string(f"uvicorn.protocols.http.{module.replace('.', ':')}"))
        make = functools.partial(protocol, config, uvicorn.server.ServerState(), {})
        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"\x16\x03\x01\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
        return answer

    head, _, body = asyncio.run(main()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "bad_request"


def test_the_limit_counts_ongoing_requests() -> None:
    """With a limit of one, the second request is rejected during the first, and the third is accepted."""

    async def main() -> list[int]:
        gate, statuses = asyncio.Event(), []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await gate.wait()
            headers = [(b"x-genflow-request", b"1")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

        middleware = RetryMiddleware(app, admission=AdmissionControl(max_ongoing=1))

        async def ask() -> None:
            async def receive() -> Any:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            await middleware({"type": "http", "method": "POST"}, receive, send)

        first = asyncio.create_task(ask())
        await asyncio.sleep(0)
        await ask()
        gate.set()
        await first
        await ask()
        return statuses

    assert asyncio.run(main()) == [503, 200, 200]


def test_rays_proxy_does_not_believe_forwarded_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind Ray's own proxy the app sees the address of the connection, on every Ray that loads the middleware."""
    monkeypatch.setattr(uvicorn.Config, "load", uvicorn.Config.load)
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"])

    headers = [(b"x-forwarded-for", b"1.2.3.4")]
    scope = {"type": "http", "client": ("127.0.0.1", 5), "scheme": "http", "headers": headers}
    for install in (lambda: None, install_header_timeout):
        install()
        config = uvicorn.Config(app, log_config=None)
        config.load()
        asyncio.run(config.loaded_app({**scope}, None, None))  # type: ignore[arg-type]
    assert [client[0] for client in seen] == ["1.2.3.4", "127.0.0.1"]
