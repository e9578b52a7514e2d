"""What runs in Ray's proxy, before every application: lost requests are sent again, excess and slow ones ended.

Ray's proxy finds `middlewares` by the variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
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

MAX_PER_REPLICA = 160  # requests in a replica: two batches of single samples, and a few that draw nothing
MAX_ONGOING = int(
    os.environ.get("GENFLOW_SERVE_MOST", "400")
)  # requests under way; what is more is refused at the door
MAX_ATTEMPTS = 6
FULL_WINDOW_S = 0.1  # for which a queue that was full, of seconds, is taken to be full still
HEADER_TIMEOUT_S = 5.0  # in which a client must have sent a request's headers


class AdmissionControl:
    """How many requests are under way, and whether another one is let in."""

    def __init__(self, max_ongoing: int = MAX_ONGOING) -> None:
        self.max_ongoing, self.ongoing, self.full_until = max_ongoing, 0, 0.0

    def rejects(self, method: str) -> bool:
        """Whether a request is refused here, at a fraction of what it costs behind here to say the same."""
        return self.ongoing >= self.max_ongoing or (method == "POST" and time.monotonic() < self.full_until)

    def error(self) -> RequestError:
        """What is said then."""
        return RequestError(503, f"{self.ongoing} requests are under way", hint="try again", retry_after=1)


ADMISSION = AdmissionControl()  # of this process


class RetryMiddleware:
    """A middleware in Ray's proxy: a request that a replica took to its grave is sent to another.

    Ray gives such a request no answer, or a bare 500; the app's own answers carry `x-genflow-request`. Requests change
    nothing, so all of them may be sent twice.
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
    """One try to have a request answered.

    Args:
        received: what the client said so far; it is said again first, and grows.
        receive: hears the client.
        send: answers it.
        is_last: whatever comes is the answer.
    """

    def __init__(self, received: list[Any], receive: Any, send: Any, is_last: bool) -> None:
        self._received, self._to_replay = received, list(received)
        self._receive, self._send, self._is_last = receive, send, is_last
        self.is_answered = self.is_disconnected = False
        self.status = 0

    async def receive(self) -> Any:
        """What the client says."""
        if self._to_replay:
            return self._to_replay.pop(0)
        message = await self._receive()
        self.is_disconnected |= message["type"] == "http.disconnect"
        if message["type"] == "http.request":
            self._received.append(message)
        return message

    async def send(self, message: Any) -> None:
        """Answer, unless it is Ray's own word that there is no answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            from_app = any(name.lower() == b"x-genflow-request" for name, _ in message.get("headers", []))
            self.is_answered = from_app or message["status"] != 500 or self._is_last
        if self.is_answered:
            await self._send(message)


def middlewares() -> list[Any]:
    """What Ray's proxy puts before every application."""
    from starlette.middleware import Middleware

    install_header_timeout()
    return [Middleware(RetryMiddleware)]


def install_header_timeout() -> None:
    """Make uvicorn, which Ray's proxy is, end connections whose headers do not come; it has no option for that."""
    from uvicorn import Config

    original_load = Config.load

    def load(self: Any) -> None:
        original_load(self)
        self.http_protocol_class = with_header_timeout(self.http_protocol_class)

    Config.load = load  # type: ignore[method-assign]


def with_header_timeout(protocol: Any) -> Any:
    """Close a connection of uvicorn's that sends no headers for `HEADER_TIMEOUT_S`, from its start or a request's.

    A protocol has a `cycle` for the request that it answers. One without is left as it is. A request that the door is
    shut for is refused as it comes off the wire: of ten times the load that can be served, nine parts end here.
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
    """Whether these bytes are one POST and its body, and nothing else."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end or not head.startswith(b"POST ") or b"\r\nexpect:" in head.lower():
        return False
    length = re.search(rb"\r\ncontent-length: *(\d{1,9}) *(\r\n|$)", head, re.IGNORECASE)
    return length is not None and int(length[1]) == len(body)


def encode_error_response(error: RequestError, request: str = "") -> bytes:
    """A refusal as HTTP/1.1 has it, with the request's id if it has one; the connection stays open."""
    reply = error.reply(request)
    headers = {"content-type": reply.media_type, "content-length": str(len(reply.body)), **reply.headers}
    headers |= {"x-genflow-request": request} if request else {}
    headers["x-content-type-options"] = "nosniff"
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + reply.body
