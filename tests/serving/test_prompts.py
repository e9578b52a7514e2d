"""Prompts of a served model: over plain HTTP, from the official client of OpenAI, and from genflow's own client."""

import base64
import dataclasses
import io
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from support import served

from genflow import text_encoders
from genflow.cli import sample, serve
from genflow.client import Client
from genflow.data import preview
from genflow.errors import UsageError
from genflow.sampling import interpolation
from genflow.sampling.engine import Engine
from genflow.serving.engine_cache import EngineCache
from genflow.serving.model_list import ServedModel
from genflow.serving.schemas import SampleRequest
from genflow.storage.store import Store
from genflow.system import http

Captioned = tuple[Store, list[ServedModel], Path]
RED, BLUE = "a red tiger", "a blue apple on a sep"


@pytest.fixture(scope="module")
def url(captioned_store: Captioned) -> Iterator[str]:
    with served.server(captioned_store[1]) as address:
        yield address


@pytest.fixture(scope="module")
def engine(captioned_store: Captioned) -> Engine:
    store, listed, _ = captioned_store
    return Engine.load(store.find("runs", listed[0].run))


@pytest.fixture(scope="module")
def official(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}v1", api_key="none", max_retries=0) as client:
        yield client


def ask(url: str, path: str, **body: Any) -> http.Response:
    data = json.dumps(body).encode()
    return http.request(f"{url}v1/{path}", data=data, headers={"Content-Type": "application/json"}, timeout=90)


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_a_prompt_gives_the_bytes_of_genflow_sample(
    url: str, captioned_store: Captioned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PNG of one and of several prompts, and of none, equal those of the command; names of other servers work."""
    monkeypatch.setenv("GENFLOW_STORE", captioned_store[0].url)
    for place, (flags, body) in enumerate([
        ({"prompt": [RED], "n": 3}, {"prompt": RED, "n": 3}),
        ({"prompt": [RED, BLUE], "negative": "an apple", "guidance": 3.0, "steps": 3, "n": 16},
         {"prompt": [RED, BLUE], "negative_prompt": "an apple", "guidance_scale": 3, "num_inference_steps": 3,
          "n": 16}),
        ({"n": 5}, {"n": 5}),
    ]):  # fmt: skip
        out = tmp_path / f"{place}.png"
        sample.sample("words", seed=4, out=out, json=True, **flags)  # type: ignore[arg-type]
        answer = ask(url, "models/words/samples", seed=4, **body)
        assert answer.body == out.read_bytes()
        sample.sample("words", seed=4, out=tmp_path / "far.png", json=True, endpoint=url, **flags)  # type: ignore[arg-type]
        assert (tmp_path / "far.png").read_bytes() == out.read_bytes()


def test_prompts_share_a_batch(url: str, engine: Engine) -> None:
    """Requests with different prompts and negative prompts are drawn together, each as it is alone."""
    assert engine.prompts is not None
    asked = [(RED, ""), (BLUE, "an apple"), ("", ""), (engine.prompts.captions[0], ""), ("a tiger", RED)] * 3
    found: dict[int, Any] = {}

    def draw(place: int) -> None:
        prompt, negative = asked[place]
        body = {"prompt": prompt, "negative_prompt": negative, "seed": place, "format": "json"}
        found[place] = json.loads(ask(url, "models/words/samples", **body).body)

    threads = [threading.Thread(target=draw, args=(place,)) for place in range(len(asked))]
    blocker = threading.Thread(target=ask, args=(url, "models/words/samples"), kwargs={"n": 64, "steps": 60})
    for thread in (blocker, *threads):
        thread.start()
    for thread in (blocker, *threads):
        thread.join()
    assert max(document["batch"] for document in found.values()) > 5
    for place, (prompt, negative) in enumerate(asked):
        document = found[place]
        assert (document["prompts"], document["negative_prompt"], document["cut"]) == ([prompt], negative, None)
        alone = engine.draw([place], prompts=[prompt], negative=negative).images[0]
        assert np.array_equal(pixels(document["images"][0]), alone)


def test_a_walk_between_two_prompts(url: str, engine: Engine) -> None:
    """It keeps the seed, equals that of `genflow sample --interpolate`, and may have two seeds as well."""
    body = {"seed": 7, "prompt": RED, "to_prompt": BLUE, "n": 5, "format": "json"}
    walk = json.loads(ask(url, "models/words/walks", **body).body)
    own = interpolation.walk_prompts(engine, [RED, BLUE], 5, 7, "", {}).images
    assert np.array_equal(np.stack([pixels(png) for png in walk["images"]]), own)
    assert (walk["prompts"], walk["to_seed"]) == ([RED, BLUE], 7)
    both = json.loads(ask(url, "models/words/walks", **body, to_seed=9).body)
    assert np.array_equal(pixels(both["images"][-1]), engine.draw([9], prompts=[BLUE]).images[0])
    same = json.loads(ask(url, "models/words/walks", seed=7, to_seed=9, prompt=RED, n=3, format="json").body)
    assert np.array_equal(pixels(same["images"][2]), engine.draw([9], prompts=[RED]).images[0])


def test_streams_and_codes_read_prompts(url: str, engine: Engine) -> None:
    """A stream ends with the samples of the prompt; codes of pictures are those for a prompt."""
    events = ask(url, "models/words/samples/stream", prompt=RED, seed=3, steps=2).body.decode()
    done = json.loads(events.split("event: done\ndata: ")[1])
    assert np.array_equal(pixels(done["images"][0]), engine.draw([3], prompts=[RED], steps=2).images[0])
    drawn = engine.draw([3], prompts=[RED]).images
    png = base64.b64encode(preview.pngs(drawn, engine.facts)[0]).decode()
    codes = ask(url, "models/words/encode", images=[png], prompt=RED, format="npy").body
    assert np.array_equal(np.load(io.BytesIO(codes)), engine.encode(drawn, None, [0], prompts=[RED]))


ARABIC = "\u062a\u0641\u0627\u062d\u0629 \u202ered\u202c \u062d\u0645\u0631\u0627\u0621"  # right to left


@pytest.mark.parametrize(
    "text",
    ["red apple " * 400, "🦀 🏳️", ARABIC, "a\x00red\x00apple", "\n\t ", "é" * 4000, "'; DROP TABLE runs; --", "\ufeff"],
)
def test_any_text_is_drawn(url: str, text: str) -> None:
    """Long texts, emoji, right-to-left text and NULs are drawn; what is cut is said in the header and the document."""
    answer = ask(url, "models/words/samples", prompt=text, format="json")
    assert answer.status == 200, answer.body
    document = json.loads(answer.body)
    assert document["prompts"] == [text]
    assert document["cut"] == answer.headers.get("x-genflow-cut")
    if text.startswith("red apple"):
        assert document["cut"].endswith("/802")


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("models/kinds/samples", {"prompt": RED}, "prompt: this model has classes, not captions"),
        ("models/kinds/samples", {"negative_prompt": RED}, "negative_prompt: this model has classes, not captions"),
        ("models/kinds/walks", {"to_prompt": RED}, "to_prompt: this model has classes, not captions"),
        ("models/words/samples", {"label": "red"}, "label: this model has captions, not classes"),
        ("models/words/samples", {"prompt": "x" * 4001}, "prompt: must have at most 4000 characters"),
        ("models/words/samples", {"prompt": [RED] * 3, "n": 2}, "prompt: 3 prompts for 2 samples"),
        ("models/words/samples", {"prompt": "a \ud800"}, "the JSON contains a lone surrogate"),
        ("models/words/samples", {"prompt": 3}, "prompt: "),
        ("models/words/samples", {"negative_prompt": RED, "guidance": 1}, "negative_prompt: it needs guidance above 1"),
        ("images/generations", {"model": "kinds", "prompt": "a red apple" * 300}, "prompt: this model has classes"),
    ],
)
def test_a_wrong_prompt_is_one_line(url: str, path: str, body: dict[str, Any], message: str) -> None:
    """Prompts for classes, classes for captions, and texts that are none get status 400 with one line."""
    answer = ask(url, path, **body)
    assert answer.status == 400, answer.body
    error = answer.json()["error"]
    assert message in error["message"]
    assert "\n" not in error["message"] + error["hint"]


def test_guidance_needs_dropped_conditions(url: str) -> None:
    """A run that never learned predictions without its condition refuses guidance, and its description says so."""
    answer = ask(url, "models/kinds/samples", guidance=2)
    assert (answer.status, answer.json()["error"]["field"]) == (422, "guidance")
    assert "family.forget above 0" in answer.json()["error"]["message"]
    assert [card["abilities"]["guidance"] for card in Client(url).models()] == [True, False]


def test_two_names_of_one_option(url: str) -> None:
    """A request that has an option under both names is invalid, and none of them is ignored."""
    answer = ask(url, "models/words/samples", steps=3, num_inference_steps=4)
    assert answer.status == 422
    assert "num_inference_steps is another name of steps" in answer.json()["error"]["message"]
    for body in ({"guidance": None, "guidance_scale": 3}, {"guidance_scale": 3, "guidance": None}):
        assert SampleRequest.model_validate(body).guidance == 3


def test_the_official_client(official: openai.OpenAI, engine: Engine) -> None:
    """`images.generate` as OpenAI documents it, with the further fields in `extra_body`."""
    more = {"seed": 5, "negative_prompt": "an apple", "guidance": 3.0}
    answer = official.images.generate(
        model="words", prompt=RED, n=2, size="16x16", response_format="b64_json", quality="high", user="me",
        extra_body=more,
    )  # fmt: skip
    drawn = engine.draw([5, 6], prompts=[RED, RED], negative="an apple", guidance=3.0).images
    assert np.array_equal(np.stack([pixels(each.b64_json or "") for each in answer.data or []]), drawn)
    assert answer.created > 1_700_000_000
    alone = official.images.generate(prompt=RED, extra_body={"seed": 6, "negative_prompt": "an apple", "guidance": 3.0})
    assert np.array_equal(pixels((alone.data or [])[0].b64_json or ""), drawn[1])
    of_class = official.images.generate(model="kinds", prompt="red", n=1)
    assert (of_class.data or [])[0].b64_json
    assert [model.id for model in official.models.list()] == ["words", "kinds"]


def test_errors_of_the_official_client(official: openai.OpenAI) -> None:
    """What the server does not do raises the client's own error, with the reason."""
    with pytest.raises(openai.BadRequestError, match="this model has classes, not captions, and 'a red apple' is no"):
        official.images.generate(model="kinds", prompt="a red apple")
    with pytest.raises(openai.NotFoundError, match="there is no model 'dall-e-3'"):
        official.images.generate(model="dall-e-3", prompt=RED)
    with pytest.raises(openai.UnprocessableEntityError, match="images of 16x16"):
        official.images.generate(prompt=RED, size="1024x1024")
    with pytest.raises(openai.UnprocessableEntityError, match="response_format: must be 'b64_json'"):
        official.images.generate(prompt=RED, response_format="url")
    with pytest.raises(openai.UnprocessableEntityError, match="stream: must be False"):
        list(official.images.generate(prompt=RED, stream=True))


def test_the_description_has_prompts(url: str, engine: Engine) -> None:
    """The card of a model of captions has examples of prompts and the length that it reads."""
    cards = {card["id"]: card for card in Client(url).models()}
    assert engine.prompts is not None
    words = cards["words"]
    assert words["prompts"]["examples"] == engine.prompts.captions
    assert words["prompts"]["tokens"] == engine.prompts.spec.length
    assert words["abilities"] == {"steps": True, "guidance": True, "encode": True, "prompts": True, "real": True}
    assert cards["kinds"]["prompts"] is None
    assert not cards["kinds"]["abilities"]["prompts"]


def test_the_client_names_prompts(url: str, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`Client.samples(prompt=...)` equals the engine; the command says what is cut, and refuses a class."""
    drawn = Client(url).samples("words", n=2, seed=1, prompt=RED, negative_prompt="an apple", guidance=3.0)
    own = engine.draw([1, 2], prompts=[RED, RED], negative="an apple", guidance=3.0).images
    assert np.array_equal(drawn.transpose(0, 2, 3, 1), own)
    walk = Client(url).walk("words", n=3, seed=1, prompt=RED, to_prompt=BLUE)
    assert np.array_equal(walk[0], Client(url).samples("words", seed=1, prompt=RED)[0])
    sample.sample("words", endpoint=url, n=1, prompt=["red apple " * 40], out=tmp_path / "x.png")
    assert "has 82 tokens, and this model reads" in capsys.readouterr().err
    with pytest.raises(UsageError, match="this model has captions, not classes"):
        sample.sample("words", endpoint=url, n=1, label="red", out=tmp_path / "x.png")


def test_without_the_text_encoder(captioned_store: Captioned) -> None:
    """Stored captions are drawn, and other words get one clear line."""
    _, listed, encoder = captioned_store
    moved = encoder.with_name("moved")
    shutil.move(encoder, moved)
    try:
        with served.client(listed[:1]) as client:
            held = client.get("/v1/models").json()["data"][0]["prompts"]["examples"][0]
            assert client.post("/v1/models/words/samples", json={"prompt": held}).status_code == 200
            refused = client.post("/v1/models/words/samples", json={"prompt": "a new tiger"})
            assert (refused.status_code, refused.json()["error"]["field"]) == (400, "prompt")
            assert "there is no such folder" in refused.json()["error"]["message"]
            assert client.post("/v1/models/words/samples", json={}).status_code == 200
    finally:
        shutil.move(moved, encoder)


def test_models_share_a_text_encoder(
    captioned_store: Captioned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models with the same text encoder in one process read its weights once, and at the first new prompt."""
    listed = captioned_store[1][0]
    copied = tmp_path / "runs" / listed.run
    shutil.copytree(listed.path, copied)
    found: list[str] = []
    find = text_encoders.find
    monkeypatch.setattr(text_encoders, "find", lambda name: found.append(name) or find(name))
    cache = EngineCache(2**30)
    first, second = (cache.engine(entry) for entry in (listed, dataclasses.replace(listed, path=str(copied))))
    assert first is not second
    assert not found
    drawn = [engine.draw([1], prompts=["a new apple"]).images for engine in (first, second)]
    assert np.array_equal(*drawn)
    assert len(found) == 1


def test_serving_without_the_text_encoder_is_said(
    captioned_store: Captioned, capsys: pytest.CaptureFixture[str]
) -> None:
    """`genflow serve` says before it starts that new prompts cannot be read, and why."""
    store, listed, encoder = captioned_store
    run = store.find("runs", listed[0].run)
    serve._note_missing_encoder(run)
    assert capsys.readouterr().err == ""
    moved = encoder.with_name("moved")
    shutil.move(encoder, moved)
    serve._note_missing_encoder(run)
    shutil.move(moved, encoder)
    assert "words draws only the captions that it has stored: text encoder" in capsys.readouterr().err
