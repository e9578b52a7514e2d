"""A tiny dataset of colour pictures with captions, its latents and text embeddings, made in this process."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.recipe.schema import Data, parse
from genflow.sampling import encode, encode_text
from genflow.storage.store import Artifact, Store

SMALL: dict[str, Any] = {"net": "autoencoder", "family": {"channels": 3, "factor": 4}}
WORDS = ("a red square", "a green square")


def pictures(folder: Path, count: int, size: tuple[int, int] = (16, 16), captions: bool = True) -> Path:
    """Pictures of two classes, in folders of their names, each with a caption."""
    draw = np.random.default_rng(0)
    for n in range(count):
        pixels = draw.integers(0, 80, (size[1], size[0], 3))
        pixels[: 4 + n % 8, : 4 + n % 5, n % 2] += 160
        file = folder / ("red", "green")[n % 2] / f"{n:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        if captions:
            file.with_suffix(".txt").write_text(f"{WORDS[n % 2]}, number {n}\n", encoding="utf-8")
    return folder


def dataset(store: Store, source: Path | str, **options: object) -> Dataset:
    """A prepared dataset; by default nothing is held out."""
    data = Data(**{"source": str(source), "val": 0, **options})
    artifact, _ = prepare(store, data, in_process, lambda *_, **__: None)
    return Dataset.open(artifact)


def task(store: Store, run: Artifact | str, data: str = "colours", **options: object) -> encode.EncodePlan:
    document = {"data": {"name": data}, "encode": options}
    return encode.plan(store, run if isinstance(run, str) else run.id, parse(document))


def encoded(store: Store, plan: encode.EncodePlan) -> Artifact:
    """Write the latents in this process."""
    folder = store.folder("latents", plan.id)
    encode.copy_autoencoder(plan, folder)
    encoder = encode.Encoder(plan, folder)
    for file, first, last in reversed(plan.shards):
        encoder.write(folder / file, first, last)
    meta = {**encode.describe(plan, encode.finish(plan, folder)), "cpu_seconds": 0.5}
    return store.finalize("latents", plan.id, name=plan.name, parents=plan.parents, meta=meta)


def embedded(store: Store, encoder: Path, data: str = "colours") -> Artifact:
    """Write the text embeddings in this process."""
    plan = encode_text.plan(store, parse({"data": {"name": data}, "encode": {"text": str(encoder)}}))
    folder = store.folder("texts", plan.id)
    folder.mkdir(parents=True, exist_ok=True)
    encode_text.write_captions(plan, folder)
    writer = encode_text.TextWriter(plan, folder)
    for file, first, last in encode_text.shards(folder):
        writer.write(folder / file, first, last)
    meta = {**encode_text.describe(plan, encode_text.finish(plan, folder)), "cpu_seconds": 0.25, "seconds": 0.1}
    return store.finalize("texts", plan.id, name=plan.name, parents=plan.parents, meta=meta)
