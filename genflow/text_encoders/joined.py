"""Several text encoders as one."""

from collections.abc import Sequence

import numpy as np

from genflow.text_encoders.base import Embedding, TextEncoder


class Joined(TextEncoder):
    """Tokens are concatenated along the length, padded with zeros to the widest; pooled vectors are concatenated.

    Args:
        encoders: in the order of the tokens; at least one.
    """

    def __init__(self, encoders: Sequence[TextEncoder]) -> None:
        self.encoders = list(encoders)
        self.name = "+".join(each.name for each in encoders)
        self.tokens = max(each.tokens for each in encoders)
        self.pooled = sum(each.pooled for each in encoders)
        self.length = sum(each.length for each in encoders)

    @property
    def id(self) -> str:
        return "+".join(each.id for each in self.encoders)

    def encode(self, captions: Sequence[str]) -> list[Embedding]:
        parts = [each.encode(captions) for each in self.encoders]
        return [self._join(own) for own in zip(*parts, strict=True)]

    def counts(self, captions: Sequence[str]) -> list[int]:
        parts = [each.counts(captions) for each in self.encoders]
        return [sum(own) for own in zip(*parts, strict=True)]

    def cut(self, captions: Sequence[str]) -> list[int]:  # each encoder cuts at its own length
        return sorted({position for each in self.encoders for position in each.cut(captions)})

    def _join(self, own: Sequence[Embedding]) -> Embedding:
        tokens = [np.pad(tokens, ((0, 0), (0, self.tokens - tokens.shape[1]))) for tokens, _ in own]
        return np.concatenate(tokens), np.concatenate([pooled for _, pooled in own])
