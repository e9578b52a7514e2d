"""ASGI middleware in Ray's proxy: retries lost requests, rejects requests over the limit, closes slow connections.

Ray's proxy imports `middlewares` as named by the variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
"""

import asyncio
import os
import re
import secrets
import time
from http import HTTPStatus
from typing import Any

from genflow.serving.middleware import send_error
from genflow.serving.responses import RequestError

MAX_PER_REPLICA = 160  # concurrent requests: two batches of single samples, and some that draw nothing
MAX_ONGOING = int(os.environ.get("GENFLOW_SERVE_MOST", "400"))  # concurrent requests in this proxy
MAX_ATTEMPTS = 6
FULL_WINDOW_S = 0.1  # after a 503 of a replica, reject requests for this time; its queue is seconds long
HEADER_TIMEOUT_S = 5.0  # time limit for a client to send the headers of a request


class AdmissionControl:
    """Counts the concurrent requests, and decides whether to accept another one."""

    def __init__(self, max_ongoing: int = MAX_ONGOING) -> None:
        self.max_ongoing, self.ongoing, self.full_until = max_ongoing, 0, 0.0

    def rejects(self, method: str) -> bool:
        """Whether to reject a request here, which costs a fraction of a rejection by a replica."""
        return self.ongoing >= self.max_ongoing or (method == "POST" and time.monotonic() < self.full_until)

    def error(self) -> RequestError:
        """Return the error for a rejected request."""
        return RequestError(
            503, f"too many requests: {self.ongoing} are being answered", hint="try again later", retry_after=1
        )


ADMISSION = AdmissionControl()  # of this process


class RetryMiddleware:
    """Sends a request to another replica if its replica dies.

    For such a request Ray returns no response, or a bare 500; the app's own responses have the header
    `x-genflow-request`. Requests change nothing on the server, so any of them may be sent twice.
    """

    def __init__(self, app: Any, max_attempts: int = MAX_ATTEMPTS, admission: AdmissionControl = ADMISSION) -> None:
        self.app, self.max_attempts, self.admission = app, max_attempts, admission

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.admission.rejects(scope["method"]):
            await send_error(self.admission.error(), "", send)
            return
        self.admission.ongoing += 1
        try:
            await self._send_with_retries(scope, receive, send)
        finally:
            self.admission.ongoing -= 1

    async def _send_with_retries(self, scope: Any, receive: Any, send: Any) -> None:
        received: list[Any] = []
        for attempt in range(self.max_attempts):
            current = _Attempt(received, receive, send, is_last=attempt == self.max_attempts - 1)
            await self.app(dict(scope), current.receive, current.send)
            if current.status == 503:
                self.admission.full_until = time.monotonic() + FULL_WINDOW_S
            if current.is_answered or current.is_disconnected:
                return
            await asyncio.sleep(0.05 * 2**attempt)


class _Attempt:
    """One attempt to answer a request.

    Args:
        received: the client's messages so far; they are replayed first, and new ones are appended.
        receive: ASGI `receive` of the client.
        send: ASGI `send` to the client.
        is_last: pass on any response, also a bare 500.
    """

    def __init__(self, received: list[Any], receive: Any, send: Any, is_last: bool) -> None:
        self._received, self._to_replay = received, list(received)
        self._receive, self._send, self._is_last = receive, send, is_last
        self.is_answered = self.is_disconnected = False
        self.status = 0

    async def receive(self) -> Any:
        """Return the client's next message; earlier attempts' messages come first."""
        if self._to_replay:
            return self._to_replay.pop(0)
        message = await self._receive()
        self.is_disconnected |= message["type"] == "http.disconnect"
        if message["type"] == "http.request":
            self._received.append(message)
        return message

    async def send(self, message: Any) -> None:
        """Pass on a message of the response, unless it is Ray's own 500."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            from_app = any(name.lower() == b"x-genflow-request" for name, _ in message.get("headers", []))
            self.is_answered = from_app or message["status"] != 500 or self._is_last
        if self.is_answered:
            await self._send(message)


def middlewares() -> list[Any]:
    """Return the middleware that Ray's proxy runs before every application."""
    from starlette.middleware import Middleware

    install_header_timeout()
    return [Middleware(RetryMiddleware)]


def install_header_timeout() -> None:
    """Make uvicorn, on which Ray's proxy runs, close connections that send no headers; it has no option for that."""
    from uvicorn import Config

    original_load = Config.load

    def load(self: Any) -> None:
        self.proxy_headers = False  # Ray's proxy is the first one, so X-Forwarded-For is the client's own claim
        original_load(self)
        self.http_protocol_class = with_header_timeout(self.http_protocol_class)

    Config.load = load  # type: ignore[method-assign]


def with_header_timeout(protocol: Any) -> Any:
    """Subclass a protocol of uvicorn so that it closes a connection `HEADER_TIMEOUT_S` after headers are due.

    The time starts with the connection, and again with the first byte of a request. The protocol's `cycle` is the
    request that it answers; a protocol without that attribute keeps its behaviour. When over the limit, the subclass
    rejects a request before parsing it: at ten times the capacity, nine of ten requests end here.
    """

    class HeaderTimeoutProtocol(protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._update_timer(transport)

        def data_received(self, data: bytes) -> None:
            if self._is_idle() and ADMISSION.rejects("POST") and is_whole_post(data):
                self.transport.write(encode_error_response(ADMISSION.error(), secrets.token_hex(8)))
                return
            super().data_received(data)
            self._update_timer(self.transport)

        def connection_lost(self, exc: Any) -> None:
            self._cancel_timer()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Answer bytes that are no HTTP request in genflow's format; uvicorn calls this."""
            self.transport.write(encode_error_response(RequestError(400, "not a valid HTTP request")))
            self.transport.close()

        def _is_idle(self) -> bool:
            cycle = getattr(self, "cycle", self)
            return cycle is None or bool(getattr(cycle, "response_complete", False))

        def _update_timer(self, transport: Any) -> None:
            if not self._is_idle():
                self._cancel_timer()
            elif self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(HEADER_TIMEOUT_S, self._close_if_idle, transport)

        def _close_if_idle(self, transport: Any) -> None:
            self._timer = None
            if self._is_idle():
                transport.close()

        def _cancel_timer(self) -> None:
            if self._timer:
                self._timer.cancel()
                self._timer = None

    return HeaderTimeoutProtocol


def is_whole_post(data: bytes) -> bool:
    """Whether these bytes are exactly one POST request with its body."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end or not head.startswith(b"POST ") or b"\r\nexpect:" in head.lower():
        return False
    length = re.search(rb"\r\ncontent-length: *(\d{1,9}) *(\r\n|$)", head, re.IGNORECASE)
    return length is not None and int(length[1]) == len(body)


def encode_error_response(error: RequestError, request: str = "") -> bytes:
    """Encode an error as an HTTP/1.1 response, with the request's id if there is one; the connection stays open."""
    reply = error.reply(request)
    headers = {"content-type": reply.media_type, "content-length": str(len(reply.body)), **reply.headers}
    headers |= {"x-genflow-request": request} if request else {}
    headers["x-content-type-options"] = "nosniff"
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + reply.body
