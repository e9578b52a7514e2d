"""The HTTP interface in this process: responses contain the engine's samples, and errors are one line."""

import base64
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from support import served

from genflow.data import preview
from genflow.data.shards import Dataset
from genflow.recipe.schema import Recipe
from genflow.sampling.engine import Engine, labels_for
from genflow.serving.middleware import Limits, new_key
from genflow.serving.model_list import ServedModel
from genflow.storage.store import Store

ModelStore = tuple[Store, list[ServedModel]]


def engine(model_store: ModelStore, name: str) -> Engine:
    store, listed = model_store
    return Engine.load(store.find("runs", next(entry.run for entry in listed if entry.name == name)))


def events(text: str) -> list[tuple[str, Any]]:
    """Parse the server-sent events of a stream."""
    found = [block.split("\n") for block in text.split("\n\n") if block]
    return [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in found]


@pytest.mark.parametrize("name", ["flow", "vae", "ring"])
def test_samples_equal_those_of_genflow_sample(http: TestClient, model_store: ModelStore, name: str) -> None:
    """PNG and NumPy bodies equal those of `genflow sample` to the byte, and the headers describe them."""
    own_engine = engine(model_store, name)
    drawn = own_engine.draw(range(7, 12), labels_for("all", 5, own_engine.facts))
    answer = http.post(f"/v1/models/{name}/samples", json={"n": 5, "seed": 7})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == preview.render(drawn.images, own_engine.facts, preview.columns(own_engine.facts))
    array = http.post(f"/v1/models/{name}/samples", json={"n": 5, "seed": 7, "format": "npy"}).content
    assert array == preview.npy(drawn.images, own_engine.facts)
    assert answer.headers["x-genflow-checkpoint"].endswith(f"@{own_engine.step}")
    assert answer.headers["x-genflow-seed"] == "7"
    assert answer.headers["x-genflow-nfe"] == str(drawn.nfe)
    assert float(answer.headers["x-genflow-seconds"]) > 0


def test_json_contains_each_image(http: TestClient, model_store: ModelStore) -> None:
    """JSON contains each image as base64 PNG, and all settings that were used."""
    body = {"n": 3, "seed": -4, "label": "7", "steps": 2, "sampler": "euler", "format": "json"}
    document = http.post("/v1/models/flow/samples", json=body).json()
    own_engine = engine(model_store, "flow")
    drawn = own_engine.draw(range(-4, -1), [7] * 3, steps=2, sampler="euler")
    assert document["labels"] == [7, 7, 7]
    assert (document["steps"], document["nfe"], document["options"]["sampler"]) == (2, 2, "euler")
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in document["images"]]
    np.testing.assert_array_equal(
        np.stack(shown), np.load(io.BytesIO(preview.npy(drawn.images, own_engine.facts)))[:, 0]
    )


def test_single_layout_is_the_image_itself(http: TestClient) -> None:
    """layout=single returns the image itself, and WebP is lossless."""
    body = {"seed": 3, "layout": "single"}
    png = Image.open(io.BytesIO(http.post("/v1/models/flow/samples", json=body).content))
    webp = Image.open(io.BytesIO(http.post("/v1/models/flow/samples", json={**body, "format": "webp"}).content))
    assert png.size == webp.size == (8, 8)
    np.testing.assert_array_equal(np.asarray(png), np.asarray(webp.convert("L")))


def test_a_walk_ends_at_the_samples_of_its_seeds(http: TestClient) -> None:
    """The first and last samples of a walk are those of its seeds, and all five differ."""
    body = {"seed": 1, "to_seed": 9, "n": 5, "label": 3, "format": "json"}
    walk = http.post("/v1/models/flow/walks", json=body).json()["images"]
    first, last = (
        http.post("/v1/models/flow/samples", json={"seed": s, "label": 3, "format": "json"}).json()["images"][0]
        for s in (1, 9)
    )
    assert (walk[0], walk[-1]) == (first, last)
    assert len(set(walk)) == 5


def test_a_stream_has_a_frame_per_evaluation(http: TestClient) -> None:
    """A stream has a frame for each evaluation, and ends with the images that `samples` returns."""
    body = {"n": 2, "seed": 5, "steps": 3}
    received = events(http.post("/v1/models/flow/samples/stream", json=body).text)
    assert [name for name, _ in received] == ["step", "step", "step", "done"]
    assert [frame["evaluation"] for _, frame in received[:3]] == [1, 2, 3]
    assert len(received[0][1]["noisy"]) == len(received[0][1]["guess"]) == 2
    whole = http.post("/v1/models/flow/samples", json={**body, "format": "json"}).json()
    assert received[-1][1]["images"] == whole["images"]


def test_a_stream_reports_an_error(http: TestClient) -> None:
    """An error in a stream is an event, because the status has already been sent."""
    received = events(http.post("/v1/models/flow/samples/stream", json={"sampler": "magic"}).text)
    assert [(name, event["error"]["field"]) for name, event in received] == [("error", "sampler")]


def test_points_of_the_plane(http: TestClient) -> None:
    """Points are numbers in JSON, and one plot as PNG."""
    document = http.post("/v1/models/ring/samples", json={"n": 20, "format": "json"}).json()
    assert np.asarray(document["points"]).shape == (20, 2)
    assert Image.open(io.BytesIO(http.post("/v1/models/ring/samples", json={"n": 20}).content)).size == (512, 512)


def test_openai_format(http: TestClient) -> None:
    """In OpenAI's format the prompt is a class, and the response contains `data[].b64_json`."""
    answer = http.post("/v1/images/generations", json={"prompt": "3", "n": 2, "seed": 1, "size": "8x8"}).json()
    same = http.post("/v1/models/flow/samples", json={"label": "3", "n": 2, "seed": 1, "format": "json"}).json()
    assert [picture["b64_json"] for picture in answer["data"]] == same["images"]
    refused = http.post("/v1/images/generations", json={"size": "512x512"})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "size")


def test_a_generation_does_not_describe_every_model_again(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The description of a model is made once, for its recipe and schema never change."""
    described = http.get("/v1/models").json()
    monkeypatch.setattr(Recipe, "model_dump", lambda *_, **__: pytest.fail("described again"))
    assert http.post("/v1/images/generations", json={"prompt": "3", "n": 1}).status_code == 200
    assert http.get("/v1/models").json() == described


def test_models_are_described(http: TestClient) -> None:
    """GET /v1/models returns family, data, options with their bounds, recipe and lineage."""
    cards = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
    assert list(cards) == ["flow", "vae", "ring"]
    flow = cards["flow"]
    assert flow["family"]["kind"] == "flow_matching"
    assert flow["data"]["classes"] == list("0123456789")
    assert flow["options"]["steps"] == {"default": 4, "minimum": 1, "maximum": 1000, "type": "integer"}
    assert flow["recipe"]["train"]["steps"] == 30
    assert flow["lineage"]["parents"]
    assert not cards["vae"]["abilities"]["steps"]
    assert http.get("/v1/models/vae").json() == cards["vae"] | {"loaded": True}


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("flow/samples", {"n": 0}, 422, "n"),
        ("flow/samples", {"n": "3"}, 422, "n"),
        ("flow/samples", {"n": True}, 422, "n"),
        ("flow/samples", {"n": 1024, "steps": 1000}, 422, "n"),
        ("flow/samples", {"seed": 2**63}, 422, "seed"),
        ("flow/samples", {"seed": 1.5}, 422, "seed"),
        ("flow/samples", {"steps": 0}, 422, "steps"),
        ("flow/samples", {"sampler": "magic"}, 422, "sampler"),
        ("flow/samples", {"eta": 2}, 422, "eta"),
        ("flow/samples", {"magic": 1}, 422, "magic"),
        ("flow/samples", {"label": "ten"}, 422, "label"),
        ("flow/samples", {"label": 10}, 422, "label"),
        ("flow/samples", {"format": "gif"}, 422, "format"),
        ("flow/samples", {"layout": "single", "n": 2}, 422, "layout"),
        ("vae/samples", {"steps": 3}, 422, "steps"),
        ("vae/samples", {"guidance": 2.0}, 422, "guidance"),
        ("ring/samples", {"layout": "single"}, 422, "layout"),
        ("flow/walks", {"n": 1}, 422, "n"),
        ("flow/walks", {"label": "all"}, 422, "label"),
        ("none/samples", {}, 404, "model"),
    ],
)
def test_an_invalid_request_is_one_line(http: TestClient, path: str, body: Any, status: int, field: str) -> None:
    """An invalid request gets an error of one line, with the field's name and the request's id."""
    answer = http.post(f"/v1/models/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (status, field)
    assert error["message"]
    assert "\n" not in error["message"]
    assert error["request"] == answer.headers["x-genflow-request"]


def test_other_errors_have_the_same_format(http: TestClient) -> None:
    """Unknown paths, wrong methods, other content types and unknown models get errors in the same format."""
    for answer, status in [
        (http.get("/nothing"), 404),
        (http.delete("/healthz"), 405),
        (http.post("/v1/models/flow/samples", content="n=3"), 415),
        (http.get("/v1/models/none"), 404),
    ]:
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"code", "field", "message", "hint", "request"}


def test_openapi_and_docs_page(http: TestClient) -> None:
    """The OpenAPI document has examples for every request, and /docs loads nothing from other hosts."""
    document = http.get("/openapi.json").json()
    assert "/v1/models/{name}/samples" in document["paths"]
    for schema in ("SampleRequest", "WalkRequest", "ImagesRequest"):
        assert document["components"]["schemas"][schema]["examples"]
    page = http.get("/docs")
    assert page.status_code == 200
    assert "http://127.0.0.1/v1/models/MODEL/samples" in page.text
    assert not re.findall(r"(?:src|href)=.?(?:https?:)?//", page.text)


def test_the_playground_loads_nothing_from_other_hosts(http: TestClient) -> None:
    """The playground names no other host, and its Content-Security-Policy forbids loading from one."""
    page = http.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    elsewhere = re.findall(r"(?:src|href|url|fetch|import)\W{1,3}https?:", page.text)
    assert not elsewhere


def test_real_pictures(http: TestClient, model_store) -> None:  # type: ignore[no-untyped-def]
    """Held-out pictures by class; the nearest training picture of a training picture is itself; not with keys."""
    answer = http.post("/v1/models/flow/real", json={"n": 12, "seed": 3}).json()
    assert answer["labels"] == [i % 10 for i in range(12)]
    assert len(answer["images"]) == 12
    assert http.post("/v1/models/flow/real", json={"n": 2, "label": "4"}).json()["labels"] == [4, 4]
    assert http.post("/v1/models/flow/real", json={"label": "ten"}).json()["error"]["field"] == "label"
    store, entries = model_store
    dataset = next(a for a in store.artifacts("datasets") if a.name.startswith("digits"))
    image = Dataset.open(dataset).splits["train"].take(np.array([5]))[0, :, :, 0]
    shown = np.rint(image * (255 / 16)).astype(np.uint8)
    near = http.post("/v1/models/flow/nearest", json={"images": base64_of(shown), "n": 3}).json()
    assert near["distances"][0] == 0
    assert near["distances"] == sorted(near["distances"])
    ring = http.post("/v1/models/ring/real", json={})
    assert (ring.status_code, ring.json()["error"]["code"]) == (404, "not_found")
    assert http.get("/v1/models/ring").json()["abilities"]["real"] is False
    key, hashed = new_key()
    with served.client(entries, Limits(keys=(hashed,))) as other:
        other.headers["Authorization"] = f"Bearer {key}"
        assert other.get("/v1/models/flow").json()["abilities"]["real"] is False
        refused = other.post("/v1/models/flow/real", json={})
        assert (refused.status_code, refused.json()["error"]["message"]) == (
            403, "an endpoint with keys or other host names shows no real pictures",
        )  # fmt: skip


def test_healthz(http: TestClient) -> None:
    """/healthz returns the models and the length of the queue."""
    health = http.get("/healthz").json()
    assert (health["status"], health["models"], health["waiting"]) == ("ok", ["flow", "vae", "ring"], 0)


def base64_of(*images: np.ndarray) -> list[str]:
    """Encode grey images (8, 8) as PNG files in base64."""
    found = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        found.append(base64.b64encode(file.getvalue()).decode())
    return found


@pytest.mark.parametrize("name", ["flow", "vae"])
def test_encode_and_decode_equal_the_engine(http: TestClient, model_store: ModelStore, name: str) -> None:
    """encode and decode over HTTP equal the engine to the bit, alone or in a batch."""
    own_engine = engine(model_store, name)
    records = own_engine.draw(range(3), [4] * 3).images
    shown = np.load(io.BytesIO(preview.npy(records, own_engine.facts)))[:, 0]
    body: dict[str, Any] = {"images": base64_of(*shown), "label": 4, "seed": 5}
    document = http.post(f"/v1/models/{name}/encode", json=body).json()
    codes = own_engine.encode(records, [4] * 3, range(5, 8))
    assert document["shape"] == list(codes.shape)
    assert document["labels"] == [4, 4, 4]
    np.testing.assert_array_equal(np.load(io.BytesIO(base64.b64decode(document["codes"]))), codes)
    alone = {**body, "images": body["images"][2:], "seed": 7, "format": "npy"}
    last = http.post(f"/v1/models/{name}/encode", json=alone)
    np.testing.assert_array_equal(np.load(io.BytesIO(last.content)), codes[2:])
    back = http.post(f"/v1/models/{name}/decode", json={"codes": document["codes"], "label": "4", "format": "npy"})
    assert back.content == preview.npy(own_engine.decode(codes, [4] * 3, range(3)).images, own_engine.facts)


def npy(array: np.ndarray) -> str:
    """Encode an array as a .npy file in base64."""
    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode()


HUGE_HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9000000000, 1, 8, 8), }".ljust(118)
HUGE_FILE = b"\x93NUMPY\x01\x00\x76\x00" + HUGE_HEADER


@pytest.mark.parametrize(
    ("name", "task", "body", "message"),
    [
        ("flow", "encode", {"images": []}, "images"),
        ("flow", "encode", {"images": ["?"]}, "invalid base64"),
        ("flow", "encode", {"images": [base64.b64encode(b"GIF89a").decode()]}, "image 0: damaged GIF"),
        ("flow", "encode", {"images": base64_of(np.zeros((6000, 6000), np.uint8))}, "megapixels"),
        ("flow", "encode", {"images": base64_of(np.zeros((8, 8), np.uint8)), "steps": 3}, "steps"),
        ("ring", "encode", {"images": base64_of(np.zeros((8, 8), np.uint8))}, "trained on points"),
        ("flow", "decode", {"codes": "AAAA"}, "a .npy file of float32"),
        ("flow", "decode", {"codes": npy(np.zeros((1, 1, 8, 9), np.float32))}, "(N, 1, 8, 8)"),
        ("flow", "decode", {"codes": npy(np.zeros((1, 1, 8, 8)))}, "a .npy file of float32"),
        ("flow", "decode", {"codes": npy(np.full((1, 1, 8, 8), np.nan, np.float32))}, "NaN or infinite"),
        ("flow", "decode", {"codes": npy(np.zeros((65, 1, 8, 8), np.float32))}, "between 1 and 64"),
        ("flow", "decode", {"codes": base64.b64encode(HUGE_FILE).decode()}, "a .npy file of float32"),
        ("flow", "decode", {"codes": npy(np.zeros((1, 1, 8, 8), np.float32)), "label": "all"}, "label=all"),
    ],
)
def test_invalid_images_and_codes_are_one_line(
    http: TestClient, name: str, task: str, body: dict[str, Any], message: str
) -> None:
    """Data that are no image or no code of the model get status 422 with one line."""
    answer = http.post(f"/v1/models/{name}/{task}", json=body)
    assert answer.status_code == 422, answer.text
    assert message in answer.json()["error"]["message"]
