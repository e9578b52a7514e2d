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

from genflow.serving.middleware import answer
from genflow.serving.responses import RequestError

BUSY = 160  # requests in a replica: two batches of single samples, and a few that draw nothing
MOST = int(os.environ.get("GENFLOW_SERVE_MOST", "400"))  # requests under way; what is more is refused at the door
TRIES = 6
FULL_S = 0.1  # for which a queue that was full, of seconds, is taken to be full still
HEADERS_S = 5.0  # in which a client must have sent a request's headers


class AdmissionControl:
    """How many requests are under way, and whether another one is let in."""

    def __init__(self, most: int = MOST) -> None:
        self.most, self.under_way, self.full_until = most, 0, 0.0

    def shut(self, method: str) -> bool:
        """Whether a request is refused here, at a fraction of what it costs behind here to say the same."""
        return self.under_way >= self.most or (method == "POST" and time.monotonic() < self.full_until)

    def refusal(self) -> RequestError:
        """What is said then."""
        return RequestError(503, f"{self.under_way} requests are under way", hint="try again", retry_after=1)


DOOR = AdmissionControl()  # of this process


class RetryMiddleware:
    """A middleware in Ray's proxy: a request that a replica took to its grave is sent to another.

    Ray gives such a request no answer, or a bare 500; the app's own answers carry `x-genflow-request`. Requests change
    nothing, so all of them may be sent twice.
    """

    def __init__(self, app: Any, tries: int = TRIES, door: AdmissionControl = DOOR) -> None:
        self.app, self.tries, self.door = app, tries, door

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.door.shut(scope["method"]):
            await answer(self.door.refusal(), "", send)
            return
        self.door.under_way += 1
        try:
            await self._answered(scope, receive, send)
        finally:
            self.door.under_way -= 1

    async def _answered(self, scope: Any, receive: Any, send: Any) -> None:
        said: list[Any] = []
        for attempt in range(self.tries):
            try_ = _Try(said, receive, send, last=attempt == self.tries - 1)
            await self.app(dict(scope), try_.receive, try_.send)
            if try_.status == 503:
                self.door.full_until = time.monotonic() + FULL_S
            if try_.answered or try_.gone:
                return
            await asyncio.sleep(0.05 * 2**attempt)


class _Try:
    """One try to have a request answered.

    Args:
        said: what the client said so far; it is said again first, and grows.
        receive: hears the client.
        send: answers it.
        last: whatever comes is the answer.
    """

    def __init__(self, said: list[Any], receive: Any, send: Any, last: bool) -> None:
        self._said, self._again = said, list(said)
        self._receive, self._send, self._last = receive, send, last
        self.answered = self.gone = False
        self.status = 0

    async def receive(self) -> Any:
        """What the client says."""
        if self._again:
            return self._again.pop(0)
        message = await self._receive()
        self.gone |= message["type"] == "http.disconnect"
        if message["type"] == "http.request":
            self._said.append(message)
        return message

    async def send(self, message: Any) -> None:
        """Answer, unless it is Ray's own word that there is no answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = any(name.lower() == b"x-genflow-request" for name, _ in message.get("headers", []))
            self.answered = own or message["status"] != 500 or self._last
        if self.answered:
            await self._send(message)


def middlewares() -> list[Any]:
    """What Ray's proxy puts before every application."""
    from starlette.middleware import Middleware

    hurry()
    return [Middleware(RetryMiddleware)]


def hurry() -> None:
    """Make uvicorn, which Ray's proxy is, end connections whose headers do not come; it has no option for that."""
    from uvicorn import Config

    before = Config.load

    def load(self: Any) -> None:
        before(self)
        self.http_protocol_class = hurried(self.http_protocol_class)

    Config.load = load  # type: ignore[method-assign]


def hurried(protocol: Any) -> Any:
    """A protocol of uvicorn's that waits `HEADERS_S` for headers: from the connection, or from a request's first byte.

    A protocol has a `cycle` for the request that it answers. One without is left as it is. A request that the door is
    shut for is refused as it comes off the wire: of ten times the load that can be served, nine parts end here.
    """

    class Hurried(protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._look(transport)

        def data_received(self, data: bytes) -> None:
            if self._between() and DOOR.shut("POST") and is_whole_post(data):
                self.transport.write(wire(DOOR.refusal(), secrets.token_hex(8)))
                return
            super().data_received(data)
            self._look(self.transport)

        def connection_lost(self, exc: Any) -> None:
            self._stop()
            super().connection_lost(exc)

        def _between(self) -> bool:
            cycle = getattr(self, "cycle", self)
            return cycle is None or bool(getattr(cycle, "response_complete", False))

        def _look(self, transport: Any) -> None:
            if not self._between():
                self._stop()
            elif self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(HEADERS_S, self._end, transport)

        def _end(self, transport: Any) -> None:
            self._timer = None
            if self._between():
                transport.close()

        def _stop(self) -> None:
            if self._timer:
                self._timer.cancel()
                self._timer = None

    return Hurried


def is_whole_post(data: bytes) -> bool:
    """Whether these bytes are one POST and its body, and nothing else."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end or not head.startswith(b"POST ") or b"\r\nexpect:" in head.lower():
        return False
    length = re.search(rb"\r\ncontent-length: *(\d{1,9}) *(\r\n|$)", head, re.IGNORECASE)
    return length is not None and int(length[1]) == len(body)


def wire(refused: RequestError, request: str = "") -> bytes:
    """A refusal as HTTP/1.1 has it, with the request's id if it has one; the connection stays open."""
    reply = refused.reply(request)
    headers = {"content-type": reply.media, "content-length": str(len(reply.body)), **reply.headers}
    headers |= {"x-genflow-request": request} if request else {}
    headers["x-content-type-options"] = "nosniff"
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + reply.body
