"""The middleware before the app: malformed requests, limits, keys and rates."""

import asyncio
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient
from support.badrequests import RAW, bodies
from support.served import client

from genflow import build
from genflow.families import family_class, kinds
from genflow.families.flow_matching import FlowMatching
from genflow.maths import samplers
from genflow.maths.paths import StraightPath
from genflow.maths.rng import BatchRng
from genflow.serving import decode_inputs, middleware
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
from genflow.serving.schemas import DecodeRequest, EncodeRequest, ImagesRequest, SampleRequest, WalkRequest
from genflow.storage.store import Store

JSON = {"Content-Type": "application/json"}


def send_malformed(http: TestClient, count: int, seed: int) -> Counter[int]:
    """Send malformed requests; every error is a JSON document, and none has a status of 500 or more."""
    document = http.get("/openapi.json").json()
    statuses: Counter[int] = Counter()
    for path, body in bodies(document, count, seed):
        answer = http.post(path, content=body, headers=JSON)
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (path, body[:200], answer.text)
        assert "Traceback" not in answer.text, (path, body[:200])
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"code", "field", "message", "hint", "request"}, (path, body[:200])
    return statuses


def test_two_thousand_bad_requests(http: TestClient) -> None:
    """Most malformed requests are rejected, and the service returns the same samples afterwards."""
    before = http.post("/v1/models/flow/samples", json={"seed": 3}).content
    statuses = send_malformed(http, 2000, seed=1)
    assert statuses[200] < 500
    assert statuses[422] > 300
    assert statuses[400] > 100
    assert http.post("/v1/models/flow/samples", json={"seed": 3}).content == before


@pytest.mark.slow
def test_a_hundred_thousand_bad_requests(http: TestClient) -> None:
    """The same with 100 000 requests, which takes about an hour."""
    assert send_malformed(http, 100_000, seed=2)[422] > 10_000


@pytest.mark.parametrize("body", RAW, ids=lambda body: str(body[:20]))
def test_malformed_json_is_rejected(http: TestClient, body: bytes) -> None:
    """A malformed body, or a body with invalid fields, gets 400, 413 or 422."""
    answer = http.post("/v1/models/flow/samples", content=body, headers=JSON)
    assert answer.status_code in (400, 413, 422)


def test_valid_json_is_parsed() -> None:
    """JSON that all parsers agree on is accepted."""
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
    """Twenty nested brackets pass, and twenty-one are rejected before parsing."""
    message = ""
    try:
        parse_strict_json(body.encode())
    except RequestError as error:
        message = error.message
    assert ("nested deeper than 20" in message) == deep


class BodyInPieces:
    """Calls the middleware with a body in pieces, and records what was read and sent."""

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
            raise AssertionError("the app was called")

        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": headers or [(b"content-type", b"application/json")], "client": ("1.2.3.4", 5),
        }  # fmt: skip
        asyncio.run(RequestLimitsMiddleware(app, self.limits)(scope, receive, send))
        return int(self.sent[0]["status"])


def test_an_endless_body_is_cut_off() -> None:
    """A body without a declared length gets 413 as soon as it passes the limit."""
    conversation = BodyInPieces((b"x" * 65536 for _ in range(10**9)), body_bytes=1 << 20)
    assert conversation.run() == 413
    assert conversation.read < 2 << 20


def test_a_large_body_is_not_read_at_all() -> None:
    """A body whose declared length is over the limit gets 413 unread."""
    conversation = BodyInPieces(iter([b"x"]), body_bytes=100)
    assert conversation.run([(b"content-type", b"application/json"), (b"content-length", b"101")]) == 413
    assert conversation.read == 0


def test_a_slow_body_times_out() -> None:
    """A body that is not complete in time gets 408."""
    assert BodyInPieces(iter([b"{"]), body_seconds=0.05).run() == 408


def test_large_headers_and_long_urls_are_rejected() -> None:
    """Large headers get 431, and long URLs 414, before the body is read."""
    assert BodyInPieces(iter([]), header_bytes=100).run([(b"x", b"y" * 101)]) == 431
    assert BodyInPieces(iter([]), target_bytes=100).run(path="/" + "a" * 101) == 414


def test_keys(model_store: tuple[Store, list[ServedModel]]) -> None:
    """Requests without a key get 401, except for / and /healthz; many wrong keys get 429."""
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
        statuses = [http.get("/v1/models", headers={"X-API-Key": f"guess {i}"}).status_code for i in range(40)]
        assert statuses[-1] == 429
        assert http.get("/v1/models", headers={"X-API-Key": key}).status_code == 200


def test_rate_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 60 per minute, 60 requests pass at once and then one per second; other callers are independent."""
    now = 0.0
    monkeypatch.setattr(middleware.time, "monotonic", lambda: now)
    limiter = RateLimiter(60)
    assert [limiter.acquire("a") for _ in range(60)] == [0] * 60
    assert limiter.acquire("a") == 2
    assert limiter.acquire("b") == 0
    now = 1.5
    assert (limiter.acquire("a"), limiter.acquire("a")) == (0, 1)


def test_an_error_message_is_one_line() -> None:
    """A message with line breaks, lone surrogates or great length becomes one line of at most 400 characters."""
    error = json.loads(RequestError(422, "a\nb\ud800" + "x" * 999, "n").reply("id").body)["error"]
    assert "\n" not in error["message"]
    assert len(error["message"]) <= 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "models.example.org"}, 200),  # named in the limits
        ({"Host": "attacker.example:8000"}, 403),
        ({"Host": "127.0.0.1.attacker.example"}, 403),
        ({"Host": "127.0.0.1", "Origin": "http://attacker.example"}, 403),
        ({"Host": "127.0.0.1", "Origin": "null"}, 403),
    ],
)
def test_foreign_hosts_and_origins_are_rejected(
    headers: dict[str, str], status: int
) -> None:
    """Without keys, a request that names another host gets 403, and `hosts` accepts more names."""
    app = RequestLimitsMiddleware(_empty_app, Limits(hosts=("models.example.org",)))
    answer = TestClient(app).get("/v1/models", headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert "names another host" in answer.json()["error"]["message"]


async def _empty_app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def test_nulls_are_absent_fields(http: TestClient) -> None:
    """A null field has its default, and `created` is the time."""
    drawn = http.post("/v1/models/flow/samples", json={"seed": 3})
    assert http.post("/v1/models/flow/samples", json={"seed": 3, "n": None, "format": None}).content == drawn.content
    nulls = {"prompt": "3", "size": None, "n": None, "response_format": None}
    answer = http.post("/v1/images/generations", json=nulls)
    assert answer.status_code == 200, answer.text
    assert abs(answer.json()["created"] - time.time()) < 60


def test_a_tiny_tolerance_is_rejected(http: TestClient) -> None:
    """An adaptive sampler's tolerance has a smallest value."""
    answer = http.post("/v1/models/flow/samples", json={"sampler": "rk45", "tolerance": 1e-300})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "tolerance"


def test_an_unreachable_tolerance_is_one_line(http: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tolerance that rk45 does not reach within its steps is an error of the field."""
    monkeypatch.setattr(samplers, "MAX_ADAPTIVE_STEPS", 3)

    def draw(*_: Any) -> None:  # here, because the patch does not reach the process that draws
        x, times = torch.ones(1, 1, 2, 1), [1.0, 0.5, 0.0]
        samplers.rk45(lambda x, t: 0.5 * x, StraightPath(), x, times, BatchRng(0, "", 0), tolerance=1e-7)

    monkeypatch.setattr(http.service.engine_process, "draw", draw)
    answer = http.post("/v1/models/flow/samples", json={"sampler": "rk45", "tolerance": 1e-7})
    assert answer.status_code == 422, answer.content
    assert answer.json()["error"]["field"] == "tolerance"
    assert "within 3 steps" in answer.json()["error"]["message"]


def test_a_recipe_may_have_a_tiny_tolerance() -> None:
    """The bound applies to requests, so that runs with an older recipe stay readable."""
    build.schema(FlowMatching.sample).model_validate({"sampler": "rk45", "tolerance": 1e-12})


def test_slow_decoding_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose pictures are not decoded in time gets 503 with Retry-After, while a decoder still works."""
    released = threading.Event()
    monkeypatch.setattr(decode_inputs, "parse_inputs", lambda *_: released.wait(60))
    with pytest.raises(RequestError, match="were not decoded before the deadline") as error:
        asyncio.run(decode_inputs.parse_in_pool(None, None, 0.01))  # type: ignore[arg-type]
    assert not released.is_set()
    released.set()
    assert (error.value.status, error.value.retry_after) == (503, 1)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "-1e308", "1e308"])
def test_no_option_accepts_a_number_without_bounds(http: TestClient, value: str) -> None:
    """NaN, infinite and huge numbers are rejected in every option of a number."""
    for name in ("flow", "vae"):
        card = next(card for card in http.get("/v1/models").json()["data"] if card["id"] == name)
        for option in ("guidance", "steps", *card["options"]):
            if isinstance(card["options"].get(option, {"default": 0})["default"], bool | str):
                continue
            answer = http.post(
                f"/v1/models/{name}/samples", content=f'{{"{option}": {value}}}', headers=JSON
            )
            assert answer.status_code in (400, 422), (option, answer.text[:200])


UNBOUNDED = (math.nan, math.inf, -math.inf, 1e308, -1e308, 10**400, -(10**400), 2**63, -(2**63) - 1)


@pytest.mark.parametrize("kind", kinds())
def test_no_family_has_an_option_without_bounds(kind: str) -> None:
    """NaN, infinite and huge numbers are invalid in every option of a number of every family, alone or in a list."""
    schema = build.schema(family_class(kind).sample)
    for name, field in schema.model_fields.items():
        if isinstance(field.default, bool | str):
            continue
        for value in UNBOUNDED:
            for given in (value, [value], str(value), {"a": value}):
                with pytest.raises(ValidationError):
                    schema.model_validate({name: given}, strict=True)


@pytest.mark.parametrize("request_", [SampleRequest, WalkRequest, EncodeRequest, DecodeRequest, ImagesRequest])
def test_no_field_of_a_request_has_no_bounds(request_: type[BaseModel]) -> None:
    """The same in every field of every request."""
    required = {"images": ["eA=="], "codes": "eA=="}
    valid = {name: required[name] for name, field in request_.model_fields.items() if field.is_required()}
    request_.model_validate(valid)
    for name in request_.model_fields:
        for value in UNBOUNDED:
            with pytest.raises(ValidationError):
                request_.model_validate({**valid, name: value}, strict=True)
