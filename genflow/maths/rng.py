"""Randomness is computed, never stored: every draw is a function of (seed, purpose, step, sample).

There are two implementations of `Rng`:

- `BatchRng`, for training: the rows of one *global* batch that belong to this worker. Each worker draws the whole
  batch and keeps its rows, so results do not depend on the number of workers.
- `SampleRng`, for sampling: one generator per sample, so a sample does not depend on the other samples in its batch.

References:
    EDM's StackedRandomGenerator (Karras et al., 2022), for one generator per sample.
"""

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def key(*parts: object) -> int:
    """A 63-bit seed derived from words and numbers; equal parts give the same seed on every machine."""
    return _digest(parts, 8) >> 1


def _digest(parts: Sequence[object], size: int) -> int:
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "big")


class Rng(ABC):
    """Draws for a batch of B samples. Each call gives new draws; the n-th call gives the same draws in every run."""

    def on(self, device: torch.device | str) -> "Rng":
        """The same sequence of draws, returned on another device.

        Times are drawn on the CPU, because a program that reads a time on a GPU waits for all work before it.
        """
        return self

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
        purpose: a name for what the draws are used for, such as "loss/net".
        step: the training step.
        start: the first row of this worker.
        total: rows in the global batch.
        device: the device of the returned tensors. Draws are made on the CPU, so they are equal on all devices.
    """

    def __init__(
        self, seed: int, purpose: str, step: int, *, start: int = 0, total: int, device: torch.device | str = "cpu"
    ) -> None:
        self._generator = torch.Generator().manual_seed(key(seed, purpose, step))
        self._start, self._total, self._device = start, total, torch.device(device)

    def on(self, device: torch.device | str) -> "BatchRng":
        other = copy.copy(self)  # with the same generator
        other._device = torch.device(device)
        return other

    def _cut(self, draws: Tensor, rows: int) -> Tensor:
        return draws[self._start : self._start + rows].to(self._device, non_blocking=True)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return self._cut(torch.randn((self._total, *shape[1:]), generator=self._generator), shape[0])

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return self._cut(torch.rand((self._total, *shape[1:]), generator=self._generator), shape[0])


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
