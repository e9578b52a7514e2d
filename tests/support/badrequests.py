"""Malformed requests: made from the OpenAPI document, with the values and bodies that are known to break servers."""

import json
import random
from collections.abc import Iterator
from typing import Any

WRONG: list[Any] = [
    None, True, False, "", "0", "x", -1, 0, 1, 2, 17, 10**9, 2**31, 2**63, -(2**63) - 1, 2**64, 10**30, 0.5, -0.0,
    1e308, [], {}, [1], {"a": 1}, "\x00", "\u202e", "é" * 300, "../../etc/passwd", "' OR 1=1 --", "{{7*7}}", "%s%s%n",
    "𝕏", "all", "none", [[[[]]]], {"$ref": "#"}, "NaN", "1e5",
]  # fmt: skip
RAW = [
    b"", b"{", b"}", b"[]", b"null", b'"x"', b"1", b"nan", b'{"n": NaN}', b'{"n": Infinity}', b'{"seed": -Infinity}',
    b'{"n": 1e400}', b'{"label": "\\ud800"}', b'{"\\udfff": 1}', b'{"label": "\xff\xfe"}', b"\xef\xbb\xbf{}",
    b"[" * 30_000, b'{"a":' * 10_000, b"[" * 10_000 + b"]" * 10_000, b'{"n": ' + b"9" * 5000 + b"}",
    b'{"n": 1, "n": 2}', b"{'n': 1}", b'{"n": 1,}', b'{"n": 01}', b'{"n": +1}', b'{"n": 0x10}', b'{"n": 1}{"n": 1}',
    b'{"x": "' + b"a" * 2_000_000, b"\x00" * 100, b'{"n": "\x01"}', b"PK\x03\x04", b"--boundary\r\n",
    b'{"label": "\\u0000"}',
]  # fmt: skip


def bodies(document: dict[str, Any], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield (path, body) pairs: documented fields with invalid values, and bodies that are not JSON."""
    chance = random.Random(seed)
    schemas = document["components"]["schemas"]
    paths = {
        "/v1/models/{name}/samples": "SampleRequest",
        "/v1/models/{name}/samples/stream": "SampleRequest",
        "/v1/models/{name}/walks": "WalkRequest",
        "/v1/images/generations": "ImagesRequest",
    }
    names = ["flow", "vae", "ring", "none", "..", "%2e%2e", "%00", "%ff", "a" * 300, "flow%2f..", "flöw"]
    for _ in range(count):
        path, schema = chance.choice(list(paths.items()))
        target = path.replace("{name}", chance.choice(names))
        if chance.random() < 0.3:
            yield target, chance.choice(RAW)
            continue
        unknown = ["temperature", "eta", "spacing", "clip", "magic", "__class__", "", "self"]
        fields = [*schemas[schema]["properties"], *unknown]
        chosen = chance.sample(fields, chance.randint(1, 4))
        body = {field: chance.choice(WRONG) for field in chosen}
        # keep valid requests cheap: few samples and few steps, or numbers over the limit
        if isinstance(body.get("n"), int) and body["n"] > 4:
            body["n"] = chance.choice([-5, 0, 10**6])
        if isinstance(body.get("steps"), int) and body["steps"] > 4:
            body["steps"] = 10**6
        yield target, json.dumps(body).encode("utf-8")
