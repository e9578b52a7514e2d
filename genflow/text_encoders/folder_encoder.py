"""A text encoder whose files are in one folder."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genflow.errors import DataError, UsageError
from genflow.system.source_hash import digest
from genflow.text_encoders.base import Embedding, TextEncoder, TextNet
from genflow.text_encoders.folder import COPY_AGAIN, ModelFolder
from genflow.text_encoders.registry import KNOWN, NAMES, architecture

# Kernels choose the order of sums by the shape of a batch. So the shape depends on a caption's own length alone: its
# tokens are padded to a multiple of `STEP`, and `BATCH` divided by that is the number of rows of every batch.
STEP, BATCH = 8, 256
NO_TEXT = {"clip_vision_model": "a CLIP vision model", "siglip_vision_model": "a SigLIP vision model"}


class FolderEncoder(TextEncoder):
    """The text encoder of a folder. Its weights are read when the first caption is encoded.

    Args:
        home: the folder, which contains config.json.
        name: see `TextEncoder`.

    Raises:
        UsageError: the folder contains no text encoder that genflow reads.
        DataError: a file is missing or damaged.
    """

    def __init__(self, home: Path, name: str) -> None:
        self._folder = ModelFolder(home)
        model_type = self._folder.model_type
        if model_type in NO_TEXT:
            raise UsageError(f"{home} is {NO_TEXT[model_type]}, not a text model", KNOWN)
        module = architecture(model_type)
        if module is None:
            raise UsageError(f"{home} is of the unknown architecture {model_type!r}", KNOWN)
        self._own_name = module.own_name
        tensors = self._folder.tensors()
        try:
            with torch.device("meta"):  # sizes without memory
                self._empty, known = module.build(self._folder.config, tensors)
        except DataError as error:
            raise DataError(f"{home}: {error.message}", error.hint or COPY_AGAIN) from error
        net: TextNet = self._empty
        self.name, self.tokens, self.pooled = name, net.tokens, net.pooled
        self.length = self._folder.length(net.positions)
        self._label = name if name in NAMES else module.__name__.rpartition(".")[2]
        self._facts, self._vocabulary = known.model_dump(mode="json"), known.vocab_size

    @cached_property
    def id(self) -> str:
        return f"{self._label}@{digest([self._facts, self.length, self._folder.digest_parts()])}"

    def counts(self, captions: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._ids(captions)]

    def encode(self, captions: Sequence[str]) -> list[Embedding]:
        ids = [self._cut(own) for own in self._ids(captions)]
        found: dict[int, Embedding] = {}
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            for rows, length in self._batches(ids):
                found |= self._encode_batch(ids, rows, length)
        return [found[row] for row in range(len(ids))]

    @cached_property
    def _tokenizer(self) -> Any:
        return self._folder.tokenizer()

    @cached_property
    def _net(self) -> TextNet:
        shapes = {name: tensor.shape for name, tensor in self._empty.state_dict().items()}
        net = self._empty.eval().requires_grad_(False)
        net.load_state_dict(self._folder.load(shapes, self._own_name), assign=True)
        return net

    def _ids(self, captions: Sequence[str]) -> Iterator[list[int]]:
        """The tokens of each caption, between those that mark its start and end."""
        for number, caption in enumerate(captions, 1):
            try:
                caption.encode("utf-8")  # a lone surrogate stands for a byte that is not UTF-8
            except UnicodeEncodeError as error:
                raise DataError(f"caption {number} is not valid UTF-8: {caption[:40]!a}",
                                "write it again as UTF-8") from error  # fmt: skip
            ids: list[int] = self._tokenizer.encode(caption).ids
            cure = "copy the tokenizer of the same model"
            if not ids:
                raise DataError(f"{self.name}: the tokenizer does not mark the end of a caption", cure)
            if max(ids) >= self._vocabulary:
                have = self._vocabulary
                raise DataError(f"{self.name}: the tokenizer has token {max(ids)}, and the net {have} tokens", cure)
            yield ids

    def _cut(self, ids: list[int]) -> list[int]:
        """At most `length` tokens; the last one still marks the end."""
        return ids if len(ids) <= self.length else [*ids[: self.length - 1], ids[-1]]

    def _batches(self, ids: list[list[int]]) -> Iterator[tuple[list[int], int]]:
        """The rows of each batch, and the length to which they are padded."""
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for row, own in enumerate(ids):
            by_length[min(-(-len(own) // STEP) * STEP, self.length)].append(row)
        for length, rows in sorted(by_length.items()):
            size = max(1, BATCH // length)
            yield from ((rows[start : start + size], length) for start in range(0, len(rows), size))

    def _encode_batch(self, ids: list[list[int]], rows: list[int], length: int) -> dict[int, Embedding]:
        size = max(1, BATCH // length)
        filled = [*rows, *[rows[-1]] * (size - len(rows))]  # repeat the last row
        tokens, mask = torch.zeros(size, length, dtype=torch.long), torch.zeros(size, length, dtype=torch.bool)
        for place, row in enumerate(filled):
            tokens[place, : len(ids[row])] = torch.tensor(ids[row])
            mask[place, : len(ids[row])] = True
        states, pooled = (part.float().numpy() for part in self._net(tokens, mask))
        return {
            row: (np.array(states[place, : len(ids[row])]), np.array(pooled[place])) for place, row in enumerate(rows)
        }
