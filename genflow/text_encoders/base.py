"""What all text encoders have in common, and the parts that their nets share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from genflow.errors import DataError, plain

Embedding = tuple[np.ndarray, np.ndarray]  # tokens (n, D) and pooled (P,), float32

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * (1.702 * x).sigmoid(),
}


class TextEncoder(ABC):
    """Captions as vectors.

    Attributes:
        name: what `find` finds it by, from every folder: a name, an absolute path, or several joined by `+`.
        tokens: D, the size of a token's vector.
        pooled: P, the size of a caption's vector.
        length: the largest number of tokens of a caption, with those that mark its start and end.
    """

    name: str
    tokens: int
    pooled: int
    length: int

    @property
    @abstractmethod
    def id(self) -> str:
        """A name and a digest of what decides the numbers, `minilm@1a2b3c4d5e` or `clip@...`; paths do not count."""

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> list[Embedding]:
        """The tokens (n, D) and the pooled vector (P,) of each caption, float32; the empty caption has some too.

        A caption of more than `length` tokens is cut. For the same machine and number of threads, the bits of a
        caption do not depend on the other captions.

        Raises:
            DataError: a caption is not valid Unicode, or a file is missing or damaged.
        """

    @abstractmethod
    def counts(self, captions: Sequence[str]) -> list[int]:
        """The number of tokens of each caption before it is cut.

        Raises:
            DataError: a caption is not valid Unicode, or a file is missing or damaged.
        """

    def cut(self, captions: Sequence[str]) -> list[int]:
        """The positions of the captions that `encode` cuts: their number, and the first of them, are for messages.

        Raises:
            DataError: as in `counts`.
        """
        return [position for position, count in enumerate(self.counts(captions)) if count > self.length]


class TextNet(nn.Module, ABC):
    """The net of a text encoder.

    Attributes:
        tokens: D, the size of a token's vector.
        pooled: P, the size of a caption's vector.
        positions: the largest number of tokens; 0: there is no limit.
    """

    tokens: int
    pooled: int
    positions: int

    @abstractmethod
    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens (B, L, D) and pooled vectors (B, P) of ids (B, L); mask (B, L) is True for real tokens.

        Real tokens come first, and the last of them marks the end of the caption.
        """


class NetConfig(BaseModel):
    """The keys of a config.json that decide a net; the defaults are those of transformers. Other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    vocab_size: int = Field(ge=1)


C = TypeVar("C", bound=NetConfig)


def parse_config(kind: type[C], values: Mapping[str, Any]) -> C:
    """The values of a config.json as a `NetConfig`.

    Raises:
        DataError: a value is invalid.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"config.json: {key}={first['input']!r}: {plain(first['msg'])}") from error


def require_heads(width: int, heads: int) -> None:
    """Check that the number of attention heads divides the width.

    Raises:
        DataError: it does not.
    """
    if width % heads:
        raise DataError("config.json: num_attention_heads does not divide hidden_size")


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """An activation function by the name that transformers gives it.

    Raises:
        DataError: genflow has no such function.
    """
    if name not in ACTIVATIONS:
        raise DataError(f"config.json: unknown activation {name!r}", f"known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def embedding(rows: int, size: int) -> nn.Embedding:
    """An embedding without initial values: drawing them on the device `meta` imports torch's compiler, for seconds."""
    return nn.Embedding.from_pretrained(torch.empty(rows, size))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads * d) as (B, heads, L, d)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, L, d) as (B, L, heads * d)."""
    return x.transpose(1, 2).flatten(2)


def mean_of_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, D) of the real tokens of x (B, L, D), scaled to a mean square of 1.

    Divided by sqrt(D), it is the sentence embedding of the package sentence-transformers, which has length 1. Nets
    need numbers around 1.
    """
    mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return F.normalize(mean, dim=1) * x.shape[-1] ** 0.5
