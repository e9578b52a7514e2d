"""Randomness is computed, never stored: every draw is a function of (seed, purpose, step, sample).

There are two implementations of `Rng`:

- `BatchRng`, for training: the draws of a row depend on its number in the *global* batch. A worker draws its own rows,
  on its device, so results depend neither on the number of workers nor on the device (`counter.py`).
- `SampleRng`, for sampling: one generator per sample, so a sample does not depend on the other samples in its batch.

References:
    EDM's StackedRandomGenerator (Karras et al., 2022), for one generator per sample.
"""

import copy
import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from genflow.maths.counter import Counter


def key(*parts: object) -> int:
    """A 63-bit seed derived from words and numbers; equal parts give the same seed on every machine."""
    return _digest(parts, 8) >> 1


def _digest(parts: Sequence[object], size: int) -> int:
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "big")


class Rng(ABC):
    """Draws for a batch of B samples. Each call gives new draws; the n-th call gives the same draws in every run.

    Attributes:
        first: the number of the first row in the global batch; 0 if there is none.
    """

    first = 0

    def on(self, device: torch.device | str) -> "Rng":
        """The same sequence of draws, returned on another device.

        A family that reads its times draws them on the CPU: on a GPU it would wait for all work before them.
        """
        return self

    @abstractmethod
    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal draws of `shape` (B, ...)."""

    @abstractmethod
    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform draws in [0, 1) of `shape` (B, ...)."""


class BatchRng(Rng):
    """The draws of consecutive rows of a global batch.

    Args:
        seed: the run's seed.
        purpose: a name for what the draws are used for, such as "loss/net".
        step: the training step.
        start: the number of the first row in the global batch.
        device: computes the draws and holds them.
    """

    def __init__(
        self, seed: int, purpose: str, step: int, *, start: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self._counter = Counter(_digest((seed, purpose, step), 16))
        self.first, self._device = start, torch.device(device)
        self._draws = itertools.count()

    def on(self, device: torch.device | str) -> "BatchRng":
        other = copy.copy(self)  # with the same count of draws
        other._device = torch.device(device)
        return other

    def part(self, first: int) -> "BatchRng":
        """The draws of the rows from the row `first` on, from the first draw on."""
        other = copy.copy(self)
        other.first, other._draws = self.first + first, itertools.count()
        return other

    def normal(self, shape: Sequence[int]) -> Tensor:
        return self._draw(shape, normal=True)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return self._draw(shape, normal=False)

    def _draw(self, shape: Sequence[int], *, normal: bool) -> Tensor:
        rows, each = range(self.first, self.first + shape[0]), math.prod(shape[1:])
        return self._counter.draw(rows, next(self._draws), each, self._device, normal=normal).reshape(tuple(shape))


class SampleRng(Rng):
    """One generator per sample: Philox with a 128-bit key derived from seed and purpose.

    torch's own CPU generator uses 32 bits of a seed. Among 50,000 samples two would then be identical with a
    probability of one quarter.

    Args:
        seeds: one seed per sample.
        purpose: a name for what the draws are used for, such as "sample".
        device: the device of the returned tensors.

    Raises:
        ValueError: from a draw whose first dimension is not the number of seeds.
    """

    def __init__(self, seeds: Sequence[int], purpose: str, device: torch.device | str = "cpu") -> None:
        self._generators = [np.random.Generator(np.random.Philox(key=_digest((seed, purpose), 16))) for seed in seeds]
        self._device = torch.device(device)

    def on(self, device: torch.device | str) -> "SampleRng":
        other = copy.copy(self)  # with the same generators
        other._device = torch.device(device)
        return other

    def normal(self, shape: Sequence[int]) -> Tensor:
        return self._stack(shape, np.random.Generator.standard_normal)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return self._stack(shape, np.random.Generator.random)

    def _stack(self, shape: Sequence[int], draw: Callable[..., np.ndarray]) -> Tensor:
        if shape[0] != len(self._generators):
            raise ValueError(f"draws for {shape[0]} samples requested from {len(self._generators)} generators")
        draws = np.empty((shape[0], math.prod(shape[1:])), np.float32)
        for row, generator in zip(draws, self._generators, strict=True):
            draw(generator, dtype=np.float32, out=row)
        return torch.from_numpy(draws).reshape(tuple(shape)).to(self._device, non_blocking=True)
