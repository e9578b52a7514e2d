"""Text embeddings as Arrow shards: every distinct caption of a dataset, as a frozen text encoder embeds it.

    texts.json       the encoder's name and the form of the embeddings (`TextSpec`)
    captions.arrow   key uint64 · caption string      sorted by key, a hash of the caption
    data-00000-of-00001.arrow  ...  tokens large_list<float16>[n*D] · pooled fixed_size_list<float16>[P]

Row i of the shards embeds row i of captions.arrow. Only real tokens are stored. The empty caption is always a row,
because it stands for "no caption" in training and in sampling.

A row of a dataset finds its embedding by its caption, so pictures and latents of them share one set of embeddings.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genflow.data.ahead import to_device
from genflow.data.shard_format import shard_ranges
from genflow.data.shards import MAX_MAPPED, Dataset, Shards, map_stream
from genflow.errors import DataError
from genflow.specs import TextSpec
from genflow.storage.files import replacing, write_atomically
from genflow.storage.store import Artifact

if TYPE_CHECKING:
    import torch

    from genflow.text import Text

INDEX, CAPTIONS = "texts.json", "captions.arrow"
SHARD = 4096  # captions in each shard
LENGTH_STEP = 8  # L is a multiple of it
Embedding = tuple[np.ndarray, np.ndarray]  # tokens (n, D) and pooled (P,)


def distinct(dataset: Dataset) -> list[str]:
    """The distinct captions of all splits, and the empty one, in the order of their keys.

    Raises:
        DataError: no row has a caption.
    """
    found: set[str] = set()
    for split in dataset.splits.values() if dataset.facts.captions else ():
        for table in split.tables:
            found.update(pc.unique(pc.list_flatten(table.column("captions"))).to_pylist())
    if not found - {""}:
        raise DataError(
            f"{dataset.artifact.id} has no captions",
            "write a caption for each picture, such as cat.txt next to cat.png, then prepare the folder again",
        )
    captions = [*{"", *found}]
    order = np.argsort(keys(captions), kind="stable")
    return [captions[i] for i in order]


def keys(captions: Sequence[str]) -> np.ndarray:
    """A hash of each caption, (N,) uint64."""
    encoded = (caption.encode("utf-8", "surrogatepass") for caption in captions)
    return np.frombuffer(b"".join(hashlib.blake2b(own, digest_size=8).digest() for own in encoded), "<u8")


def write_captions(folder: Path, captions: Sequence[str]) -> Path:
    """Write captions.arrow; the captions are in the order of their keys.

    Raises:
        DataError: two captions have the same key.
    """
    hashed = keys(captions)
    if (same := np.flatnonzero(hashed[1:] == hashed[:-1])).size:
        first, second = captions[same[0]], captions[same[0] + 1]
        raise DataError(f"the captions {first!r} and {second!r} have the same 64-bit hash", "change one of them")
    table = pa.record_batch([pa.array(hashed), pa.array(captions, pa.string())], names=["key", "caption"])
    return _write(folder / CAPTIONS, table)


def write_shard(path: Path, embeddings: Sequence[Embedding]) -> Path:
    """Write the embeddings of consecutive captions, which `round_embedding` has rounded."""
    tokens = [rounded.ravel() for rounded, _ in embeddings]
    pooled = np.stack([vector for _, vector in embeddings])
    offsets = np.cumsum([0, *map(len, tokens)])  # int64: a shard of wide encoders has more than 2^31 numbers
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(tokens)))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(pooled.ravel()), pooled.shape[1])
    return _write(path, pa.record_batch([lists, vectors], names=["tokens", "pooled"]))


def _write(path: Path, batch: pa.RecordBatch) -> Path:
    with replacing(path) as attempt, pa.OSFile(str(attempt), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as to:
        to.write_batch(batch)
    return path


def write_index(folder: Path, encoder: str, spec: TextSpec) -> Path:
    """Write texts.json, which makes the folder a set of text embeddings."""
    return write_atomically(folder / INDEX, json.dumps({"encoder": encoder, "spec": asdict(spec)}, indent=1))


def round_embedding(embedding: Embedding) -> Embedding:
    """The embedding in float16, as the shards store it; prompts are rounded alike, so equal words are equal bits."""
    tokens, pooled = embedding
    return tokens.astype(np.float16), pooled.astype(np.float16)


def batch_of(embeddings: Sequence[Embedding], spec: TextSpec, device: "torch.device | str" = "cpu") -> "Text":
    """Embeddings (B) as a `Text` with L = `spec.length`, without an empty caption.

    A caption of more tokens is cut; its last token still marks the end.
    """
    from genflow.text import Text

    tokens = np.zeros((len(embeddings), spec.length, spec.tokens), np.float32)
    mask = np.zeros((len(embeddings), spec.length), bool)
    pooled = np.zeros((len(embeddings), spec.pooled), np.float32)
    for place, (own, vector) in enumerate(embeddings):
        kept = own if len(own) <= spec.length else np.concatenate([own[: spec.length - 1], own[-1:]])
        tokens[place, : len(kept)], mask[place, : len(kept)], pooled[place] = kept, True, vector
    return Text(to_device(tokens, device), to_device(mask, device), to_device(pooled, device))


@dataclass(frozen=True)
class Texts:
    """Memory-mapped text embeddings.

    Args:
        folder: of the files.
        encoder: the name by which `text_encoders.find` finds the encoder.
        spec: the form of the embeddings.
    """

    folder: Path
    encoder: str
    spec: TextSpec

    @classmethod
    def open(cls, folder: Path) -> "Texts":
        """Open the embeddings in a folder.

        Raises:
            DataError: a file is missing or damaged.
        """
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            return cls(folder, index["encoder"], TextSpec(**index["spec"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / INDEX} is missing or damaged: {error}", "genflow encode again") from error

    @classmethod
    def of(cls, artifact: Artifact, *, verify: bool = True) -> "Texts":
        """Open the embeddings of an artifact.

        Raises:
            DataError: a file is missing or damaged.
        """
        if verify:
            artifact.verify()
        return cls.open(artifact.file(INDEX).parent)

    @cached_property
    def captions(self) -> list[str]:
        """The captions, without the empty one."""
        return [caption for caption in self._captions.to_pylist() if caption]

    @cached_property
    def _captions(self) -> pa.ChunkedArray:
        return map_stream(self.folder / CAPTIONS).column("caption")

    @cached_property
    def _keys(self) -> np.ndarray:
        keys: np.ndarray = map_stream(self.folder / CAPTIONS).column("key").to_numpy()
        return keys

    @cached_property
    def _shards(self) -> Shards:
        ranges = shard_ranges(len(self._keys), SHARD)
        return Shards([self.folder / file for file, _, _ in ranges], [last - first for _, first, last in ranges])

    @cached_property
    def _views(self) -> Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """A function that returns a shard's offsets, tokens and pooled vectors as views of the file."""

        def view(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            tokens, pooled = (self._shards[number].column(name).chunk(0) for name in ("tokens", "pooled"))
            values = tokens.values.to_numpy().reshape(-1, self.spec.tokens)
            return tokens.offsets.to_numpy() // self.spec.tokens, values, pooled.flatten().to_numpy()

        return lru_cache(MAX_MAPPED)(view)

    def find(self, captions: Sequence[str]) -> np.ndarray:
        """The row of each caption, (N,); -1 for an unknown one."""
        wanted = keys(captions)
        rows = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[rows] == wanted, rows, -1)

    def embedding(self, row: int) -> Embedding:
        """The embedding of a row, as views of the file."""
        offsets, values, pooled = self._views(row // SHARD)
        own = row % SHARD
        return values[offsets[own] : offsets[own + 1]], pooled[own * self.spec.pooled : (own + 1) * self.spec.pooled]

    def text(self, captions: Sequence[str], device: "torch.device | str" = "cpu") -> "Text":
        """The captions (B) as a condition.

        Raises:
            DataError: a caption is not one of these.
        """
        rows = self.find(captions)
        if (unknown := np.flatnonzero(rows < 0)).size:
            caption = captions[unknown[0]]
            raise DataError(f"{self.folder} has no embedding of the caption {caption!r}", "genflow encode again")
        text = batch_of([self.embedding(row) for row in rows.tolist()], self.spec, device)
        return replace(text, empty=self.empty(device))

    def empty(self, device: "torch.device | str" = "cpu") -> "Text":
        """The empty caption, one row."""
        return self._empty(str(device))

    @cached_property
    def _empty(self) -> "Callable[[str], Text]":
        """A function that returns the empty caption on a device."""

        def read(device: str) -> "Text":
            return batch_of([self.embedding(int(self.find([""])[0]))], self.spec, device)

        return lru_cache(8)(read)

    def longest(self) -> int:
        """The largest number of tokens of a caption."""
        return max(int(np.diff(self._views(number)[0]).max()) for number in range(len(self._shards)))

    def write(self, folder: Path, captions: Iterable[str]) -> list[Path]:
        """Write the embeddings of some captions, and of the empty one, to another folder; return the files."""
        kept = [*{"", *captions}]
        rows = np.sort(self.find(kept))  # the rows are in the order of the keys
        folder.mkdir(parents=True, exist_ok=True)
        files = [write_captions(folder, [self._captions[row].as_py() for row in rows.tolist()])]
        for file, first, last in shard_ranges(len(rows), SHARD):
            files.append(write_shard(folder / file, [self.embedding(row) for row in rows[first:last].tolist()]))
        return [*files, write_index(folder, self.encoder, self.spec)]


def length_for(longest: int) -> int:
    """L for captions of at most `longest` tokens: a multiple of `LENGTH_STEP`."""
    return max(LENGTH_STEP, -(-longest // LENGTH_STEP) * LENGTH_STEP)
