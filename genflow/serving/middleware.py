"""ASGI middleware before the app: limits, API keys, rate limits, strict JSON, request ids, one log line per request.

It reads the whole body before it calls the app. So the app never receives a body that is too large, too slow, not
JSON, or JSON that only some parsers accept (NaN, lone surrogates, duplicate keys).
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
from urllib.parse import urlsplit

import numpy as np

from genflow.serving.responses import RequestError
from genflow.system.http import is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("genflow.serving")

PUBLIC_PATHS = ("/healthz", "/")  # need no key: the load balancer's check, and the playground, which contains no secret
MAX_DEPTH = 20  # nested brackets in a JSON body
DEPTH_CHANGES = np.zeros(256, np.int8)  # by byte: +1 for [ and {, -1 for ] and }
DEPTH_CHANGES[list(b"[{")], DEPTH_CHANGES[list(b"]}")] = 1, -1
MAX_CALLERS = 10_000  # rate limits that are kept in memory


@dataclass(frozen=True)
class Limits:
    """Limits on requests.

    Args:
        body_bytes: largest body.
        header_bytes: largest size of all headers together.
        target_bytes: largest size of path and query.
        body_seconds: time to send the body.
        per_minute: requests of one caller; 0: no limit. A caller is an API key, or an IP address without keys.
        keys: SHA-256 of the accepted API keys, in hexadecimal; empty: no key is needed.
        hosts: accepted host names besides the loopback's, if there are no keys; `*`: every name.
        docs: whether to serve /docs and /openapi.json.
    """

    body_bytes: int = 1 << 20
    header_bytes: int = 16 << 10
    target_bytes: int = 2 << 10
    body_seconds: float = 10.0
    per_minute: int = 0
    keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = ()
    docs: bool = True


def new_key() -> tuple[str, str]:
    """Return a new key of 256 random bits, and its hash. A random key needs no slow hash: SHA-256 hides it."""
    key = f"gf_{secrets.token_urlsafe(32)}"
    return key, hash_key(key)


def hash_key(key: str) -> str:
    """Return the hash of a key; only the hash is stored."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse_strict_json(body: bytes) -> Any:
    """Parse a body as JSON.

    Raises:
        RequestError: the body is not JSON, or parsers disagree about its meaning.
    """
    if _is_nested_deeper(body, MAX_DEPTH):  # checked first: the parser recurses until the stack overflows
        raise RequestError(400, f"the JSON is nested deeper than {MAX_DEPTH} levels")

    def reject_constant(word: str) -> Any:
        raise RequestError(400, f"{word} is not valid JSON")

    def reject_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(items)
        if len(document) < len(items):
            raise RequestError(400, "the JSON contains a duplicate key")
        return document

    try:
        text = body.decode("utf-8")
        document = json.loads(text, parse_constant=reject_constant, object_pairs_hook=reject_duplicates)
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(400, "the JSON contains a lone surrogate, which is not a character") from error
    except UnicodeDecodeError as error:
        raise RequestError(400, "the body is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not valid JSON: {str(error)[:100]}") from error
    return document


def _is_nested_deeper(body: bytes, max_depth: int) -> bool:
    """Whether more than `max_depth` brackets are open at once outside strings.

    Takes 3 ms for 1 MB; a Python loop took 20 to 95 ms. The count is exact up to the first backslash outside a string,
    where the parser stops, too.
    """
    if body.count(b"[") + body.count(b"{") <= max_depth:  # most requests
        return False
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")  # every remaining quote begins or ends a string
    codes = np.frombuffer(plain, np.uint8)
    inside = np.cumsum(codes == ord('"'), dtype=np.int32) & 1
    depths = np.cumsum(DEPTH_CHANGES[codes] * (1 - inside), dtype=np.int32)
    return int(depths.max(initial=0)) > max_depth


class RateLimiter:
    """A token bucket for each caller: `per_minute` requests, which may come all at once."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def acquire(self, caller: str) -> int:
        """Take a token: return 0 if the request is allowed, else the seconds to wait."""
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
        app: the ASGI app behind it.
        limits: limits on requests.
        on_response: called after each response with method, path, status and seconds.
    """

    def __init__(
        self, app: App, limits: Limits, on_response: Callable[[str, str, int, float], None] = lambda *_: None
    ) -> None:
        self.app, self.limits, self.on_response = app, limits, on_response
        self._rate_limiter = RateLimiter(limits.per_minute)
        self._wrong_keys = RateLimiter(30 if limits.keys else 0)  # wrong keys per IP address

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
        """Check the path, the headers, the key and the rate, before the body is read."""
        limits = self.limits
        if len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"]) > limits.target_bytes:
            raise RequestError(414, f"the URL is longer than {limits.target_bytes} bytes")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > limits.header_bytes:
            raise RequestError(431, f"the headers are larger than {limits.header_bytes} bytes")
        if not limits.keys:
            self._check_host(scope)
        client = str((scope.get("client") or ["?"])[0])
        caller = client
        if limits.keys and scope["path"] not in PUBLIC_PATHS:
            caller = self._check_key(scope, client)
        if wait := 0 if scope["path"] in PUBLIC_PATHS else self._rate_limiter.acquire(caller):
            raise RequestError(429, f"more than {limits.per_minute} requests per minute", retry_after=wait)

    def _check_host(self, scope: Scope) -> None:
        """Reject a foreign `Host` or `Origin`: a web page can let its own name point to 127.0.0.1 (DNS rebinding).

        A key makes this needless, because the page does not know it. A request without `Host` is not a browser's.

        Raises:
            RequestError: the request comes from a page of another host.
        """
        for header, raw in scope["headers"]:
            if header not in (b"host", b"origin"):
                continue
            text = raw.decode("latin-1")
            try:
                name = urlsplit(text if header == b"origin" else f"//{text}").hostname or ""
            except ValueError:
                name = ""
            at = f"[{name}]" if ":" in name else name
            if not is_loopback(at) and not {name, "*"} & set(self.limits.hosts):
                kind = header.decode().capitalize()
                raise RequestError(403, f"the header {kind}: {text[:100]} names another host",
                          hint="serve with a key, or name the host in GENFLOW_ALLOWED_HOSTS")  # fmt: skip

    def _check_key(self, scope: Scope, client: str) -> str:
        """Return the hash of the caller's key.

        Raises:
            RequestError: the key is missing or unknown.
        """
        headers = dict(scope["headers"])
        given = headers.get(b"x-api-key", b"") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        key_hash = hashlib.sha256(given.strip()).hexdigest()
        known = False
        for key in self.limits.keys:  # compare with all of them, so that the time reveals nothing
            known |= hmac.compare_digest(key, key_hash)
        if known:
            return key_hash
        if wait := self._wrong_keys.acquire(client):
            raise RequestError(429, "too many requests with wrong API keys", retry_after=wait)
        raise RequestError(401, "an API key is required" if not given else "unknown API key",
                      hint="send the header `Authorization: Bearer KEY`")  # fmt: skip

    async def _read_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read and check the body; return a `receive` that gives it to the app."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        headers = dict(scope["headers"])
        max_bytes = self.limits.body_bytes
        with contextlib.suppress(ValueError):
            if int(headers.get(b"content-length", b"0")) > max_bytes:
                raise RequestError(413, f"the body is larger than {max_bytes:,} bytes")
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise RequestError(415, "the body must be JSON", hint="send the header Content-Type: application/json")
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError(400, "the client disconnected")
                    size += len(message.get("body", b""))
                    if size > max_bytes:
                        raise RequestError(413, f"the body is larger than {max_bytes:,} bytes")
                    chunks.append(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise RequestError(408, f"sending the body took longer than {self.limits.body_seconds:.0f} s") from error
        body = b"".join(chunks)
        if not isinstance(parse_strict_json(body), dict):
            raise RequestError(400, "the body must be a JSON object")
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        return receive_again


async def send_error(error: RequestError, request: str, send: Send) -> None:
    """Send an error as the response."""
    reply = error.reply(request)
    headers = {"content-type": reply.media_type, "content-length": str(len(reply.body)), **reply.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": raw})
    await send({"type": "http.response.body", "body": reply.body})


def _request_id(scope: Scope) -> str:
    """Return the id that a proxy gave the request, if it is safe to log; else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if 8 <= len(given) <= 64 and given.replace(b"-", b"").isalnum() else secrets.token_hex(8)


def _response_headers(request: str, path: str) -> list[tuple[bytes, bytes]]:
    """Return the headers of every response: the request's id, and restrictions for browsers."""
    headers = [(b"x-genflow-request", request.encode()), (b"x-content-type-options", b"nosniff")]
    if path == "/":
        policy = (
            b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob: 'self'; "
            b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers += [(b"content-security-policy", policy), (b"referrer-policy", b"no-referrer")]
    return headers
