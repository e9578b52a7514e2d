"""The order of a training's rows: a permutation for each epoch, which is computed and not stored.

Rows of data whose shards all stay open (`shards.MAX_MAPPED`) are permuted as a whole. Of larger data a batch would
need nearly as many shards as rows, and would open most of them again. So there the shards are permuted, and rows move
within `WINDOW` consecutive ones: while a window is read, no other shard is. Both permutations are functions of (seed,
epoch).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from genflow.data.shards import MAX_MAPPED
from genflow.maths.permutation import shuffled
from genflow.maths.rng import key

WINDOW = MAX_MAPPED // 2  # shards; a batch at the end of one and the beginning of the next finds all of them open


class Order:
    """The rows at the positions of an epoch.

    Args:
        sizes: the number of rows of each shard.
        seed: the run's seed.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        self._sizes, self._seed = np.asarray(sizes, np.int64), seed
        self.total = int(self._sizes.sum())
        self._firsts = np.cumsum(self._sizes) - self._sizes  # the first row of each shard
        self._shards = lru_cache(2)(self._permuted_shards)  # a batch may reach into the next epoch

    def rows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The rows at positions (N,), in 0 .. total - 1, of an epoch: int64 (N,)."""
        if len(self._sizes) <= MAX_MAPPED:
            return shuffled(positions, self.total, key(self._seed, "order", epoch))
        shards, starts = self._shards(epoch)
        edges = np.append(starts[:-1:WINDOW], self.total)  # where windows begin and end
        windows = np.searchsorted(edges, positions, side="right") - 1
        rows = np.empty(len(positions), np.int64)
        for window in np.unique(windows):
            here = windows == window
            first, count = edges[window], int(edges[window + 1] - edges[window])
            moved = first + shuffled(positions[here] - first, count, key(self._seed, "order", epoch, int(window)))
            place = np.searchsorted(starts, moved, side="right") - 1
            rows[here] = self._firsts[shards[place]] + moved - starts[place]
        return rows

    def _permuted_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the order of an epoch (K,), and where they begin and the last one ends (K + 1,)."""
        count = len(self._sizes)
        shards = shuffled(np.arange(count), count, key(self._seed, "shards", epoch))
        return shards, np.append(0, np.cumsum(self._sizes[shards]))
