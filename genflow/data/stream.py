"""The rows of a training step: a pure function of (seed, step), so that a resumed run reads the same rows.

The stream is an endless concatenation of permutations, one per epoch. Step s with global batch B reads positions
sB .. (s+1)B - 1. Each worker reads its part of them, so the number of workers changes no row. A permutation is not
stored: the row at a position is computed, so ten million rows take no more memory than ten.
"""

import numpy as np
import torch

from genflow.batch import Batch
from genflow.data.pairs import Pairs
from genflow.data.shards import Split
from genflow.maths.permutation import shuffled
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
    """

    def __init__(
        self, split: Split | Pairs, batch: int, seed: int, rank: int = 0, world: int = 1, device: str = "cpu"
    ) -> None:
        self.split, self.batch, self.seed, self.device = split, batch, seed, torch.device(device)
        self._total = len(split)
        self.start, self.stop = rank_range(batch, rank, world)

    def rows(self, step: int) -> np.ndarray:
        """The rows of a step that this worker reads."""
        positions = np.arange(step * self.batch + self.start, step * self.batch + self.stop)
        epochs, offsets = np.divmod(positions, self._total)
        parts = [
            shuffled(offsets[epochs == epoch], self._total, key(self.seed, "order", epoch))
            for epoch in np.unique(epochs)
        ]
        return np.concatenate(parts)

    def __call__(self, step: int) -> Batch:
        """The batch of a step, on the device."""
        return self.split.batch(self.rows(step), self.device)


def rank_range(batch: int, rank: int, world: int) -> tuple[int, int]:
    """The positions [start, stop) of a worker in the global batch; sizes differ by at most one between workers."""
    return batch * rank // world, batch * (rank + 1) // world
