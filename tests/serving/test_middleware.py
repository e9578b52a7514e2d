"""What stands before the app: whatever is sent, the answer is one of its own, and nothing breaks."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.badrequests import RAW, bodies
from support.served import client

from genflow.serving import middleware
from genflow.serving.middleware import (
    Limits,
    RateLimiter,
    RequestLimitsMiddleware,
    hash_key,
    new_key,
    parse_strict_json,
)
from genflow.serving.model_list import ServedModel
from genflow.serving.responses import RequestError
from genflow.storage.store import Store

JSON = {"Content-Type": "application/json"}


def storm(http: TestClient, count: int, seed: int) -> Counter[int]:
    """Send bad requests; every answer is a document, and none is the server's fault."""
    document = http.get("/openapi.json").json()
    told: Counter[int] = Counter()
    for path, body in bodies(document, count, seed):
        answer = http.post(path, content=body, headers=JSON)
        told[answer.status_code] += 1
        assert answer.status_code < 500, (path, body[:200], answer.text)
        assert "Traceback" not in answer.text, (path, body[:200])
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"code", "field", "message", "hint", "request"}, (path, body[:200])
    return told


def test_two_thousand_bad_requests(http: TestClient) -> None:
    """Nearly all of them are refused, none breaks anything, and the service works as before."""
    before = http.post("/v1/models/flow/samples", json={"seed": 3}).content
    told = storm(http, 2000, seed=1)
    assert told[200] < 500
    assert told[422] > 300
    assert told[400] > 100
    assert http.post("/v1/models/flow/samples", json={"seed": 3}).content == before


@pytest.mark.slow
def test_a_hundred_thousand_bad_requests(http: TestClient) -> None:
    """The same, for an hour's patience."""
    assert storm(http, 100_000, seed=2)[422] > 10_000


@pytest.mark.parametrize("body", RAW, ids=lambda body: str(body[:20]))
def test_what_is_no_json_is_refused(http: TestClient, body: bytes) -> None:
    """Or, where it is JSON, what it says is."""
    answer = http.post("/v1/models/flow/samples", content=body, headers=JSON)
    assert answer.status_code in (400, 413, 422)


def test_strict_json_is_json() -> None:
    """What every reader reads alike passes."""
    text = '{"a": [1, -2.5e3, "\\u00e9 \\ud83d\\ude00", null, true], "b": {"c": "[[[[[[[[[[[[[[[[[[[[[[[[[["}}'
    assert parse_strict_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("body", "deep"),
    [
        ("[" * 20 + "]" * 20, False),
        ("[" * 21 + "]" * 21, True),
        ('{"a":' * 21 + "1" + "}" * 21, True),
        ("[" + "[]," * 50 + "{}]", False),
        (json.dumps({"a": '"' + "[" * 30}), False),  # an escaped quote ends no string
        (json.dumps({"a" + "\\" * 3: "[" * 30, "b": "\\"}), False),
        (json.dumps({"a\\": "\\"})[:-1] + ', "b": ' + "[" * 21, True),  # an escaped backslash escapes nothing
        ('"' + "[" * 30, False),
        ('["' + "\\" * 2 + '", ' + "[" * 20, True),
        ('["' + "\\" * 3 + '", ' + "[" * 20, False),  # the second quote is escaped: the string is not closed
    ],
)
def test_depth_is_that_of_brackets_outside_strings(body: str, deep: bool) -> None:
    """Twenty open at once pass, twenty-one are refused before the parser sees them."""
    told = ""
    try:
        parse_strict_json(body.encode())
    except RequestError as refused:
        told = refused.message
    assert ("nested deeper than 20" in told) == deep


class Fed:
    """An ASGI conversation in which the body comes in pieces, and what was read of it."""

    def __init__(self, pieces: Iterator[bytes], **limits: Any) -> None:
        self.pieces, self.read, self.sent = pieces, 0, []  # type: ignore[var-annotated]
        self.limits = Limits(**limits)

    def run(self, headers: list[tuple[bytes, bytes]] | None = None, path: str = "/v1/models/flow/samples") -> int:
        async def receive() -> Any:
            piece = next(self.pieces, None)
            if piece is None:
                await asyncio.sleep(60)
            self.read += len(piece or b"")
            return {"type": "http.request", "body": piece, "more_body": True}

        async def send(message: Any) -> None:
            self.sent.append(message)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise AssertionError("it was let in")

        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": headers or [(b"content-type", b"application/json")], "client": ("1.2.3.4", 5),
        }  # fmt: skip
        asyncio.run(RequestLimitsMiddleware(app, self.limits)(scope, receive, send))
        return int(self.sent[0]["status"])


def test_an_endless_body_is_cut_off() -> None:
    """As soon as it has passed the bound, whatever its length was said to be."""
    fed = Fed((b"x" * 65536 for _ in range(10**9)), body_bytes=1 << 20)
    assert fed.run() == 413
    assert fed.read < 2 << 20


def test_a_large_body_is_not_read_at_all() -> None:
    """If its length is said."""
    fed = Fed(iter([b"x"]), body_bytes=100)
    assert fed.run([(b"content-type", b"application/json"), (b"content-length", b"101")]) == 413
    assert fed.read == 0


def test_a_slow_body_is_given_up() -> None:
    """After its time."""
    assert Fed(iter([b"{"]), body_seconds=0.05).run() == 408


def test_large_headers_and_long_addresses_are_refused() -> None:
    """Before anything is read."""
    assert Fed(iter([]), header_bytes=100).run([(b"x", b"y" * 101)]) == 431
    assert Fed(iter([]), target_bytes=100).run(path="/" + "a" * 101) == 414


def test_a_key_opens(model_store: tuple[Store, list[ServedModel]]) -> None:
    """Without it 401, but for the page and the health; its hash is all that is kept."""
    key, hash = new_key()
    assert key not in hash
    assert hash == hash_key(key)
    with client(model_store[1], Limits(keys=(hash,))) as http:
        assert http.get("/v1/models").status_code == 401
        assert http.get("/docs").status_code == 401
        assert http.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert http.get("/v1/models", headers={"X-API-Key": key}).status_code == 200
        assert http.get("/").status_code == http.get("/healthz").status_code == 200
        told = [http.get("/v1/models", headers={"X-API-Key": f"guess {i}"}).status_code for i in range(40)]
        assert told[-1] == 429
        assert http.get("/v1/models", headers={"X-API-Key": key}).status_code == 200


def test_who_asks_too_often_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute's requests at once, then one each second of 60 a minute; others are not concerned."""
    now = 0.0
    monkeypatch.setattr(middleware.time, "monotonic", lambda: now)
    limiter = RateLimiter(60)
    assert [limiter.acquire("a") for _ in range(60)] == [0] * 60
    assert limiter.acquire("a") == 2
    assert limiter.acquire("b") == 0
    now = 1.5
    assert (limiter.acquire("a"), limiter.acquire("a")) == (0, 1)


def test_a_refusal_is_one_line_of_text() -> None:
    """Whatever it quotes."""
    error = json.loads(RequestError(422, "a\nb\ud800" + "x" * 999, "n").reply("id").body)["error"]
    assert "\n" not in error["message"]
    assert len(error["message"]) <= 400
