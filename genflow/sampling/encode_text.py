"""Text embeddings of a dataset: a frozen text encoder embeds every distinct caption once, so training needs no encoder.

The embedding of a caption depends on nothing but its words, so any process may write any shard in any order, with the
same bytes.

References:
    Scaling Rectified Flow Transformers (Esser et al., 2024)   https://arxiv.org/abs/2403.03206
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from genflow import text_encoders
from genflow.data import texts
from genflow.data.shard_format import FACTS, shard_ranges
from genflow.data.shards import Dataset, map_stream
from genflow.data.texts import Texts
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import Recipe
from genflow.specs import DataSpec, TextSpec
from genflow.storage.store import Artifact, Store
from genflow.system import source_hash
from genflow.system.source_hash import digest

BATCH = 256  # captions that are embedded at once


@dataclass(frozen=True)
class TextPlan:
    """Text embeddings that may not exist yet.

    Args:
        id: `<name>-<content address>`.
        name: the name without the hash; by default that of the dataset.
        dataset: of the captions.
        encoder: the name by which `text_encoders.find` finds the encoder.
        spec: the form of the embeddings; L is not known yet, and is 0.
    """

    id: str
    name: str
    dataset: Artifact
    encoder: str
    spec: TextSpec

    @property
    def parents(self) -> list[str]:
        """The ids of the artifacts that the embeddings are made from."""
        return [self.dataset.id]


def plan(store: Store, recipe: Recipe) -> TextPlan:
    """Derive the id of a dataset's text embeddings.

    Args:
        store: holds the dataset.
        recipe: `data.name` is the dataset, `name` that of the embeddings, and `encode.text` the text encoder.

    Raises:
        UsageError: the dataset does not exist or has no captions, or there is no such text encoder.
        SetupError: a package of the text encoder is not installed.
        DataError: a file of the text encoder is damaged.
    """
    dataset = store.find("datasets", recipe.data.name)
    facts = DataSpec.from_json(dataset.file(FACTS).read_text(encoding="utf-8"))
    if not facts.captions:
        raise UsageError(
            f"{dataset.id} has no captions",
            "write a caption for each picture, such as cat.txt next to cat.png, then prepare the folder again",
        )
    encoder = text_encoders.find(recipe.encode.text)
    spec = TextSpec(encoder.tokens, encoder.pooled, 0, encoder.id)
    code = source_hash.code_of("genflow/sampling/encode_text.py", also=("genflow/text_encoders",))
    deciding = [dataset.id, facts.fingerprint, encoder.id, code]  # the fingerprint covers the captions
    name = recipe.name or dataset.name
    return TextPlan(f"{name}-{digest(deciding)}", name, dataset, encoder.name, spec)


def write_captions(task: TextPlan, folder: Path) -> Path:
    """Write the distinct captions of the dataset, unless an earlier attempt did; return the file."""
    file = folder / texts.CAPTIONS
    return file if file.is_file() else texts.write_captions(folder, texts.distinct(Dataset.open(task.dataset)))


def shards(folder: Path) -> list[tuple[str, int, int]]:
    """(file, first caption, last caption + 1) of each shard."""
    return shard_ranges(map_stream(folder / texts.CAPTIONS).num_rows, texts.SHARD)


class TextWriter:
    """Writes shards of embeddings.

    Args:
        task: the plan.
        folder: of the embeddings, with captions.arrow.
    """

    def __init__(self, task: TextPlan, folder: Path) -> None:
        self._encoder = text_encoders.find_same(task.encoder, task.spec.encoder)
        self._captions = map_stream(folder / texts.CAPTIONS).column("caption")

    def write(self, path: Path, first: int, last: int) -> None:
        """Write a shard atomically.

        Raises:
            DataError: an embedding is not finite, or too large for float16.
        """
        captions = self._captions.slice(first, last - first).to_pylist()
        found: list[texts.Embedding] = []
        for start in range(0, len(captions), BATCH):
            found += map(texts.round_embedding, self._encoder.encode(captions[start : start + BATCH]))
        for caption, embedding in zip(captions, found, strict=True):
            if not all(np.isfinite(part).all() for part in embedding):
                raise DataError(f"the embedding of {caption!r} does not fit float16", "use another text encoder")
        texts.write_shard(path, found)


@dataclass(frozen=True)
class Measured:
    """What the finished embeddings are.

    Args:
        spec: the complete form.
        captions: the number of distinct captions, without the empty one.
        warnings: what a user should know, one sentence each.
    """

    spec: TextSpec
    captions: int
    warnings: list[str]


def finish(task: TextPlan, folder: Path) -> Measured:
    """Measure the longest caption, and write the index."""
    found = Texts(folder, task.encoder, task.spec)
    spec = replace(task.spec, length=texts.length_for(found.longest()))
    texts.write_index(folder, task.encoder, spec)
    captions = found.captions
    return Measured(spec, len(captions), _about_cut(captions, task.encoder))


def _about_cut(captions: list[str], name: str) -> list[str]:
    encoder = text_encoders.find(name)
    cut = encoder.cut(captions)
    if not cut:
        return []
    first, length = captions[cut[0]], encoder.counts([captions[cut[0]]])[0]
    shown = first if len(first) <= 40 else f"{first[:40]}…"
    verb = "are" if len(cut) > 1 else "is"
    why = f"{name} reads {encoder.length} tokens, and {shown!r} has {length}"
    if length <= encoder.length:  # one of several encoders reads fewer tokens
        why = f"the first is {shown!r}"
    return [f"{len(cut)} of {len(captions)} captions {verb} cut: {why}"]


def describe(task: TextPlan, measured: Measured) -> dict[str, Any]:
    """The metadata of the embeddings for their manifest, without the time that they took."""
    return {
        "dataset": task.dataset.id,
        "encoder": task.encoder,
        "encoder_id": measured.spec.encoder,
        "captions": measured.captions,
        "spec": {"tokens": measured.spec.tokens, "pooled": measured.spec.pooled, "length": measured.spec.length},
        "warnings": measured.warnings,
    }
