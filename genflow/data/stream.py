"""The rows of a training step: a pure function of (seed, step), so that a resumed run reads the same rows.

The stream is an endless concatenation of permutations, one per epoch (see `order`). Step s with global batch B reads
positions sB .. (s+1)B - 1. Each worker reads its part of them, so the number of workers changes no row. A permutation
is not stored: the row at a position is computed, so ten million rows take no more memory than ten.

Flips, crops and the choice of one of several captions are functions of (seed, epoch, row), and the epoch follows from
the step. Pictures are changed as bytes, before the batch is copied to the device, and in the stream alone: all other
readers see the centre crop, not flipped.
"""

from dataclasses import replace

import numpy as np
import torch

from genflow.batch import Batch
from genflow.data.order import Order
from genflow.data.pairs import Pairs
from genflow.data.shards import Split
from genflow.data.strips import crop
from genflow.data.texts import Texts
from genflow.maths.permutation import hashed
from genflow.maths.rng import key


class Stream:
    """Batches of a split for one worker.

    Args:
        split: the training split, or a teacher's pairs.
        batch: the global batch size B.
        seed: the run's seed.
        rank: this worker's rank.
        world: the number of workers.
        device: the device of the batches.
        flip: whether to flip each picture with probability 1/2. Pairs are never flipped, because their noise is not.
        texts: the embeddings of the captions, which then stand in the place of labels.
    """

    def __init__(
        self,
        split: Split | Pairs,
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: str = "cpu",
        *,
        flip: bool = False,
        texts: Texts | None = None,
    ) -> None:
        self.split, self.batch, self.seed, self.device, self.flip = split, batch, seed, torch.device(device), flip
        self.texts = texts
        self._order = Order(split.sizes, seed)
        self.start, self.stop = rank_range(batch, rank, world)

    def rows(self, step: int) -> np.ndarray:
        """The rows of a step that this worker reads."""
        return self._epochs_and_rows(step)[1]

    def _epochs_and_rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(step * self.batch + self.start, step * self.batch + self.stop)
        epochs, offsets = np.divmod(positions, self._order.total)
        parts = [self._order.rows(epoch, offsets[epochs == epoch]) for epoch in np.unique(epochs)]
        return epochs, np.concatenate(parts)

    def __call__(self, step: int) -> Batch:
        """The batch of a step, on the device."""
        epochs, rows = self._epochs_and_rows(step)
        if isinstance(self.split, Pairs) or not (self.flip or self.split.facts.strip):
            batch = self.split.batch(rows, self.device)
        else:
            batch = self.split.batch(rows, self.device, self._augmented(self.split, epochs, rows))
        if self.texts is None:
            return batch
        return replace(batch, label=self.texts.text(self._captions(epochs, rows), self.device))

    def _captions(self, epochs: np.ndarray, rows: np.ndarray) -> list[str]:
        """One caption of each row; a row without captions has the empty one."""
        draws = self._draws("caption", epochs, rows)
        split = self.split
        captions = split.captions(rows) if isinstance(split, Pairs) else split.column("captions", rows)
        return [own[int(draw) % len(own)] if own else "" for own, draw in zip(captions, draws, strict=True)]

    def _augmented(self, split: Split, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The records of `rows`, cropped and flipped: (B, H, W, C)."""
        if split.facts.strip:
            strips, extents = split.strips(rows)
            places = np.abs(extents) - strips.shape[2] + 1
            records = crop(strips, extents, (self._draws("crop", epochs, rows) % places.astype(np.uint64)).astype(int))
        else:
            records = split.take(rows)
        if self.flip:
            flipped = self._draws("flip", epochs, rows) % np.uint64(2) == 1
            records[flipped] = records[flipped, :, ::-1]
        return records

    def _draws(self, purpose: str, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """A pseudorandom uint64 for each row: a function of (seed, purpose, epoch, row)."""
        draws = np.empty(len(rows), np.uint64)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            draws[now] = hashed(rows[now], key(self.seed, purpose, epoch))
        return draws


def rank_range(batch: int, rank: int, world: int) -> tuple[int, int]:
    """The positions [start, stop) of a worker in the global batch; sizes differ by at most one between workers."""
    return batch * rank // world, batch * (rank + 1) // world
