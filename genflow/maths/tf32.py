"""TF32 on CUDA, on purpose: products of float32 with 10 instead of 23 bits of mantissa, up to eight times as fast.

By default PyTorch uses it in convolutions and not in matrix products. Here it is allowed in training, unless the recipe
asks for fp32, and nowhere else: slopes by small differences, likelihoods, codes and samples are computed exactly.

References:
    https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def _flags() -> tuple[Any, ...]:
    # The older switches: torch.export reads them, and fails if the newer `fp32_precision` was set.
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 within the block, in matrix products and in convolutions."""
    before = [flag.allow_tf32 for flag in _flags()]
    _set(allowed)
    try:
        yield
    finally:
        for flag, value in zip(_flags(), before, strict=True):
            flag.allow_tf32 = value


def forbid() -> None:
    """Forbid TF32 in this process, outside the blocks that allow it."""
    _set(False)


def _set(allowed: bool) -> None:
    for flag in _flags():
        flag.allow_tf32 = allowed
