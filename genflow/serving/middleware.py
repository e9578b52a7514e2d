"""What stands before the HTTP app: sizes, time, keys, rates, strict JSON, request ids, and one line of log a request.

A plain ASGI middleware. It reads a body within its bounds before anything else sees it, so the app behind it never
meets one that is too large, too slow, no JSON, or JSON that Python reads and others do not (NaN, lone surrogates).
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genflow.serving.responses import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("genflow.serving")

PUBLIC_PATHS = ("/healthz", "/")  # without a key: a load balancer's question, and the page, which holds no secret
MAX_DEPTH = 20  # brackets within brackets
DEPTH_CHANGES = np.zeros(256, np.int8)  # by which each byte changes the depth
DEPTH_CHANGES[list(b"[{")], DEPTH_CHANGES[list(b"]}")] = 1, -1
MAX_CALLERS = 10_000  # callers whose rate is remembered


@dataclass(frozen=True)
class Limits:
    """What a request may be.

    Args:
        body_bytes: of a request.
        header_bytes: all of them.
        target_bytes: path and query.
        body_seconds: to send it.
        per_minute: requests of one caller; 0: any number. A caller is a key, or an address where keys are not asked.
        keys: SHA-256 of the keys that are let in, in hexadecimal; none: everybody is.
        docs: whether /docs and /openapi.json are there.
    """

    body_bytes: int = 1 << 20
    header_bytes: int = 16 << 10
    target_bytes: int = 2 << 10
    body_seconds: float = 10.0
    per_minute: int = 0
    keys: tuple[str, ...] = field(default=(), repr=False)
    docs: bool = True


def new_key() -> tuple[str, str]:
    """A new key of 256 random bits, and its hash. It is as good as random, so one round of SHA-256 hides it."""
    key = f"gf_{secrets.token_urlsafe(32)}"
    return key, hash_key(key)


def hash_key(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse_strict_json(body: bytes) -> Any:
    """The JSON document of a body.

    Raises:
        RequestError: it is none, or one that not every reader reads alike.
    """
    if _is_nested_deeper(body, MAX_DEPTH):  # before the parser, which would go as deep as the stack
        raise RequestError(400, f"the JSON is nested deeper than {MAX_DEPTH}")

    def reject_constant(word: str) -> Any:
        raise RequestError(400, f"{word} is no JSON")

    def reject_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(items)
        if len(document) < len(items):
            raise RequestError(400, "a key stands twice")
        return document

    try:
        text = body.decode("utf-8")
        document = json.loads(text, parse_constant=reject_constant, object_pairs_hook=reject_duplicates)
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(400, "the JSON holds a lone surrogate, which is no character") from error
    except UnicodeDecodeError as error:
        raise RequestError(400, "the body is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is no JSON: {str(error)[:100]}") from error
    return document


def _is_nested_deeper(body: bytes, max_depth: int) -> bool:
    """Whether more than `most` brackets are open at once, outside strings: 3 ms for 1 MB, where a loop took 20 to 95.

    Brackets are send_with_headers exactly up to the first backslash outside a string, where the parser ends, too.
    """
    if body.count(b"[") + body.count(b"{") <= max_depth:  # most requests
        return False
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")  # every quote that is left begins or ends a string
    codes = np.frombuffer(plain, np.uint8)
    inside = np.cumsum(codes == ord('"'), dtype=np.int32) & 1
    depths = np.cumsum(DEPTH_CHANGES[codes] * (1 - inside), dtype=np.int32)
    return int(depths.max(initial=0)) > max_depth


class RateLimiter:
    """A token bucket a caller: `per_minute` requests, and as many at once."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def acquire(self, caller: str) -> int:
        """0 if the caller may go on, else the seconds until it may."""
        if not self.per_minute:
            return 0
        now = time.monotonic()
        tokens, last = self._buckets.pop(caller, (float(self.per_minute), now))
        tokens = min(self.per_minute, tokens + (now - last) * self.per_minute / 60)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        while len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        return 0 if allowed else max(1, round((1 - tokens) * 60 / self.per_minute + 0.5))


class RequestLimitsMiddleware:
    """The middleware.

    Args:
        app: what it guards.
        limits: what a request may be.
        on_response: told of every request that was answered: method, path, status, seconds.
    """

    def __init__(
        self, app: App, limits: Limits, on_response: Callable[[str, str, int, float], None] = lambda *_: None
    ) -> None:
        self.app, self.limits, self.on_response = app, limits, on_response
        self._rate_limiter = RateLimiter(limits.per_minute)
        self._wrong_keys = RateLimiter(30 if limits.keys else 0)  # wrong keys of an address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        start, status = time.perf_counter(), 0
        request = scope.setdefault("state", {})["request"] = _request_id(scope)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {
                    **message,
                    "headers": [*message.get("headers", []), *_response_headers(request, scope["path"])],
                }
            await send(message)

        try:
            try:
                self._check_head(scope)
                receive = await self._read_body(scope, receive)
            except RequestError as error:
                await send_error(error, request, send_with_headers)
            else:
                await self.app(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - start
            self.on_response(scope["method"], scope["path"], status, seconds)
            line = {
                "request": request, "method": scope["method"], "path": scope["path"][:200], "status": status,
                "ms": round(1000 * seconds, 1), "client": (scope.get("client") or ["?"])[0],
            }  # fmt: skip
            log.info(json.dumps(line))

    def _check_head(self, scope: Scope) -> None:
        """Everything that can be said before the body is read."""
        limits = self.limits
        if len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"]) > limits.target_bytes:
            raise RequestError(414, f"the address is longer than {limits.target_bytes} bytes")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > limits.header_bytes:
            raise RequestError(431, f"the headers are larger than {limits.header_bytes} bytes")
        client = str((scope.get("client") or ["?"])[0])
        caller = client
        if limits.keys and scope["path"] not in PUBLIC_PATHS:
            caller = self._check_key(scope, client)
        if wait := 0 if scope["path"] in PUBLIC_PATHS else self._rate_limiter.acquire(caller):
            raise RequestError(429, f"more than {limits.per_minute} requests a minute", retry_after=wait)

    def _check_key(self, scope: Scope, client: str) -> str:
        """The hash of the caller's key.

        Raises:
            RequestError: there is none, or it is not known.
        """
        headers = dict(scope["headers"])
        given = headers.get(b"x-api-key", b"") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        key_hash = hashlib.sha256(given.strip()).hexdigest()
        known = False
        for key in self.limits.keys:  # all of them, so that the time tells nothing
            known |= hmac.compare_digest(key, key_hash)
        if known:
            return key_hash
        if wait := self._wrong_keys.acquire(client):
            raise RequestError(429, "too many wrong keys", retry_after=wait)
        raise RequestError(401, "a key is needed" if not given else "this key is not known",
                      hint="send it as `Authorization: Bearer KEY`")  # fmt: skip

    async def _read_body(self, scope: Scope, receive: Receive) -> Receive:
        """The body, read within its bounds, as something to receive again."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        headers = dict(scope["headers"])
        max_bytes = self.limits.body_bytes
        with contextlib.suppress(ValueError):
            if int(headers.get(b"content-length", b"0")) > max_bytes:
                raise RequestError(413, f"the body is larger than {max_bytes:,} bytes")
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise RequestError(415, "the body must be JSON", hint="Content-Type: application/json")
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError(400, "the client went away")
                    size += len(message.get("body", b""))
                    if size > max_bytes:
                        raise RequestError(413, f"the body is larger than {max_bytes:,} bytes")
                    chunks.append(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise RequestError(408, f"the body took longer than {self.limits.body_seconds:.0f} s") from error
        body = b"".join(chunks)
        if not isinstance(parse_strict_json(body), dict):
            raise RequestError(400, "the body must be a JSON object")
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        return receive_again


async def send_error(error: RequestError, request: str, send: Send) -> None:
    """Send a refusal."""
    reply = error.reply(request)
    headers = {"content-type": reply.media_type, "content-length": str(len(reply.body)), **reply.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": raw})
    await send({"type": "http.response.body", "body": reply.body})


def _request_id(scope: Scope) -> str:
    """The id that a proxy gave the request, if it is one to put in logs; else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if 8 <= len(given) <= 64 and given.replace(b"-", b"").isalnum() else secrets.token_hex(8)


def _response_headers(request: str, path: str) -> list[tuple[bytes, bytes]]:
    """What every answer carries: its id, and what a browser must not do with it."""
    headers = [(b"x-genflow-request", request.encode()), (b"x-content-type-options", b"nosniff")]
    if path == "/":
        policy = (
            b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob: 'self'; "
            b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers += [(b"content-security-policy", policy), (b"referrer-policy", b"no-referrer")]
    return headers
