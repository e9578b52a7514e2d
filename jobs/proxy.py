"""What runs in Ray's proxy, before every application: lost requests are sent again, excess and slow ones ended.

Ray's proxy finds `middlewares` by the variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
"""

import asyncio
import time
from typing import Any

from genflow import env
from genflow.serving.guard import answer
from genflow.serving.replies import Refused

MOST = 400  # requests in the proxy; what is more is refused there
TRIES = 6
FULL_S = 0.25  # for which a queue that was full, of seconds, is taken to be full still
HEADERS_S = 5.0  # in which a client must have sent a request's headers


class Again:
    """A middleware in Ray's proxy: a request that a replica took to its grave is sent to another.

    Ray gives such a request no answer, or a bare 500; the app's own answers carry `x-genflow-request`. Requests change
    nothing, so all of them may be sent twice.
    """

    def __init__(self, app: Any, tries: int = TRIES) -> None:
        self.app, self.tries = app, tries
        self._under_way = 0
        self._full_until = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        full = scope["method"] == "POST" and time.monotonic() < self._full_until
        if full or self._under_way >= MOST:  # at a fraction of what it costs behind here to say the same
            refused = Refused(503, f"{self._under_way} requests are under way", hint="try again", retry_after=1)
            await answer(refused, "", send)
            return
        self._under_way += 1
        try:
            await self._answered(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _answered(self, scope: Any, receive: Any, send: Any) -> None:
        said: list[Any] = []
        for attempt in range(self.tries):
            try_ = _Try(said, receive, send, last=attempt == self.tries - 1)
            await self.app(dict(scope), try_.receive, try_.send)
            if try_.status == 503:
                self._full_until = time.monotonic() + FULL_S
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
    env.stand_back()
    return [Middleware(Again)]


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

    A protocol has a `cycle` for the request that it answers. One without is left as it is.
    """

    class Hurried(protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._look(transport)

        def data_received(self, data: bytes) -> None:
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
