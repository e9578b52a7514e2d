"""Randomness is computed, never stored: every draw is a function of (seed, purpose, step, sample).

Two kinds of draw share one face, `Rng`:

- while training, the rows of one *global* batch, cut for this worker: `BatchRng`. Workers draw the whole
  batch and keep their rows, so the number of workers changes no number;
- while sampling, one generator a sample: `SampleRng`. A sample does not depend on its company.

References:
    EDM's StackedRandomGenerator (Karras et al., 2022), for one generator a sample.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def key(*parts: object) -> int:
    """A 63-bit seed from any words and numbers: the same for the same parts, on every machine."""
    return _digest(parts, 8) >> 1


def _digest(parts: Sequence[object], size: int) -> int:
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "big")


class Rng(ABC):
    """Draws for a batch of B samples. Each call gives fresh draws; the n-th call is the same in every run."""

    @abstractmethod
    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal draws of `shape` (B, ...)."""

    @abstractmethod
    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform draws in [0, 1) of `shape` (B, ...)."""


class BatchRng(Rng):
    """Rows `start:stop` of draws made for a global batch of `total` rows.

    Args:
        seed: the run's seed.
        purpose: what the draws are for, such as "loss/net".
        step: the training step.
        start: the first row that this worker owns.
        total: rows in the global batch.
        device: where the draws go; they are made on the CPU, so that every device sees the same.
    """

    def __init__(
        self, seed: int, purpose: str, step: int, *, start: int = 0, total: int, device: torch.device | str = "cpu"
    ) -> None:
        self._generator = torch.Generator().manual_seed(key(seed, purpose, step))
        self._start, self._total, self._device = start, total, torch.device(device)

    def _cut(self, draws: Tensor, rows: int) -> Tensor:
        return draws[self._start : self._start + rows].to(self._device, non_blocking=True)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return self._cut(torch.randn((self._total, *shape[1:]), generator=self._generator), shape[0])

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return self._cut(torch.rand((self._total, *shape[1:]), generator=self._generator), shape[0])


class SampleRng(Rng):
    """One generator for each sample: Philox, keyed by 128 bits of seed and purpose.

    torch's own CPU generator takes 32 bits of a seed: of 50,000 samples two would be one with a chance of a quarter.

    Args:
        seeds: one seed a sample.
        purpose: what the draws are for, such as "sample".
        device: where the draws go.
    """

    def __init__(self, seeds: Sequence[int], purpose: str, device: torch.device | str = "cpu") -> None:
        self._generators = [np.random.Generator(np.random.Philox(key=_digest((seed, purpose), 16))) for seed in seeds]
        self._device = torch.device(device)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return self._stack(shape, np.random.Generator.standard_normal)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return self._stack(shape, np.random.Generator.random)

    def _stack(self, shape: Sequence[int], draw: Callable[..., np.ndarray]) -> Tensor:
        if shape[0] != len(self._generators):
            raise ValueError(f"draws for {shape[0]} samples asked of {len(self._generators)} generators")
        draws = np.empty((shape[0], math.prod(shape[1:])), np.float32)
        for row, generator in zip(draws, self._generators, strict=True):
            draw(generator, dtype=np.float32, out=row)
        return torch.from_numpy(draws).reshape(tuple(shape)).to(self._device, non_blocking=True)
