"""Prompts: words -> the condition of a net, by the text encoder with which the run's captions were embedded.

A run's folder keeps the embeddings of the empty caption and of some held-out captions (`genflow.data.texts`). Only
other words need the text encoder, which is loaded for the first of them.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from genflow import text_encoders
from genflow.data.texts import Embedding, Texts, batch_of, round_embedding
from genflow.errors import DataError
from genflow.specs import TextSpec
from genflow.text import Text
from genflow.text_encoders.base import TextEncoder

KEPT = 1024  # embeddings of prompts that stay in memory
MAX_COLUMNS = 8  # of a grid of prompts


class Prompts:
    """Embeds the prompts of one run.

    Args:
        stored: of the run's folder.
        more: of the run's dataset, so that its captions need no text encoder; None: unknown.
    """

    def __init__(self, stored: Texts, more: Texts | None = None) -> None:
        self.stored, self.more = stored, more
        self._kept: OrderedDict[str, Embedding] = OrderedDict()
        self._lender: Prompts | None = None

    @property
    def spec(self) -> TextSpec:
        """The form of the embeddings."""
        return self.stored.spec

    @property
    def captions(self) -> list[str]:
        """Captions of held-out rows, as examples of prompts."""
        return self.stored.captions

    def examples(self, count: int) -> list[str]:
        """Some of the captions, evenly spaced; they are repeated if there are fewer than `count`."""
        known = self.captions or [""]
        return [known[i * len(known) // count if count < len(known) else i % len(known)] for i in range(count)]

    def borrow(self, lender: "Prompts") -> None:
        """Use the text encoder of the prompts of another run, if it is the same, so that its weights are read once."""
        if lender.spec.encoder == self.spec.encoder and lender is not self:
            self._lender = lender

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text encoder.

        Raises:
            UsageError: it is not on this machine, or is another than the run's.
            SetupError: its package is not installed.
        """
        if self._lender:
            return self._lender.encoder
        return text_encoders.find_same(self.stored.encoder, self.spec.encoder)

    def text(
        self, prompts: Sequence[str], negative: Sequence[str] | str = "", device: torch.device | str = "cpu"
    ) -> Text:
        """The condition of some prompts, (B) with L = `spec.length`.

        Args:
            prompts: (B,) words; "" is no condition. A longer prompt is cut, see `cut`.
            negative: what stands in the place of "no condition", for all prompts or for each.
            device: of the condition.

        Raises:
            UsageError, SetupError: see `encoder`.
            DataError: a prompt is not valid Unicode.
        """
        negatives = [negative] if isinstance(negative, str) else list(negative)
        wanted = list(dict.fromkeys([*prompts, *negatives]))
        found = dict(zip(wanted, self._embeddings(wanted), strict=True))
        text = batch_of([found[prompt] for prompt in prompts], self.spec, device)
        if any(negatives):
            return text.against(batch_of([found[prompt] for prompt in negatives], self.spec, device))
        return replace(text, empty=self.stored.empty(device))

    def pooled(self, prompts: Sequence[str]) -> np.ndarray:
        """Only the pooled vectors of some prompts, (N, P) float32.

        Raises:
            UsageError, SetupError: see `encoder`.
        """
        parts = [self._embeddings(list(prompts[start : start + KEPT])) for start in range(0, len(prompts), KEPT)]
        vectors = [vector for part in parts for _, vector in part]
        return np.stack(vectors).astype(np.float32)

    def cut(self, prompts: Sequence[str]) -> dict[str, int]:
        """The number of tokens of each prompt that is cut: it has more than the run's captions, or an encoder reads.

        Raises:
            UsageError, SetupError: see `encoder`; captions that the run knows need none.
            DataError: a prompt is not valid Unicode.
        """
        new = self._unknown(list(dict.fromkeys(prompts)))
        if not new:
            return {}
        counts, by_encoder = self.encoder.counts(new), set(self.encoder.cut(new))
        return {prompt: n for i, (prompt, n) in enumerate(zip(new, counts, strict=True))
                if n > self.spec.length or i in by_encoder}  # fmt: skip

    def _unknown(self, prompts: list[str]) -> list[str]:
        """The prompts whose embeddings are not stored."""
        for texts in (self.stored, self.more):
            if texts and prompts:
                rows = texts.find(require_unicode(prompts)).tolist()
                prompts = [prompt for prompt, row in zip(prompts, rows, strict=True) if row < 0]
        return prompts

    def _embeddings(self, prompts: list[str]) -> list[Embedding]:
        new = [prompt for prompt in prompts if prompt not in self._kept]
        for texts in (self.stored, self.more):
            if texts and new:
                rows = texts.find(require_unicode(new)).tolist()
                self._keep((prompt, texts.embedding(row)) for prompt, row in zip(new, rows, strict=True) if row >= 0)
                new = [prompt for prompt, row in zip(new, rows, strict=True) if row < 0]
        if new:
            self._keep(zip(new, map(round_embedding, self.encoder.encode(new)), strict=True))
        found = [self._kept[prompt] for prompt in prompts]
        while len(self._kept) > max(KEPT, len(prompts)):
            self._kept.popitem(last=False)
        return found

    def _keep(self, embeddings: Iterable[tuple[str, Embedding]]) -> None:
        for prompt, embedding in embeddings:
            self._kept[prompt] = embedding


def require_unicode(prompts: list[str]) -> list[str]:
    """The same prompts.

    Raises:
        DataError: one has a lone surrogate, such as an argument of the command line that is not UTF-8.
    """
    for prompt in prompts:
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"the prompt {prompt[:40]!a} is not valid Unicode", "write it again as UTF-8") from error
    return prompts


def shown(prompt: str) -> str:
    """A prompt in a message: at most 40 characters, in quotes."""
    return repr(prompt if len(prompt) <= 40 else f"{prompt[:40]}…")


def in_turn(prompts: Sequence[str], n: int) -> tuple[list[str], int]:
    """The prompt of each of n samples, in turn, and the columns of their grid."""
    few = len(prompts) if 1 < len(prompts) <= MAX_COLUMNS else 0
    return [prompts[i % len(prompts)] for i in range(n)], few or min(n, MAX_COLUMNS)
