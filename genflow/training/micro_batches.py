"""A step in several parts (gradient accumulation): the rows of a batch one after another, with the draws of the whole.

A loss is a mean over rows, so the sum of the parts' gradients, each weighted by its share of the rows, is the gradient
of the batch, up to rounding. Every row has the draws that it has without parts.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from genflow.batch import Batch
from genflow.data.stream import rank_range
from genflow.maths.rng import Rng

Numbers = dict[str, Tensor]


def micro_batches(batch: Batch, rng: Rng, parts: int) -> Iterator[tuple[Batch, Rng, bool]]:
    """Each part of a worker's rows, with its random draws, and whether it is the last.

    Args:
        batch: the rows of this worker.
        rng: source of their draws.
        parts: at most as many as rows.
    """
    if parts == 1:
        yield batch, rng, True
        return
    drawn: list[Tensor] = []
    for number in range(parts):
        first, last = rank_range(len(batch), number, parts)
        rows = slice(first, last)
        noise = None if batch.noise is None else batch.noise[rows]
        part = Batch(batch.x[rows], batch.label[rows], noise)
        yield part, _PartRng(rng, len(batch), first, drawn), number == parts - 1


def mean(losses: Sequence[tuple[int, Tensor, Numbers]]) -> tuple[Tensor, Numbers]:
    """The loss and the numbers of a batch, from (rows, loss, numbers) of its parts."""
    if len(losses) == 1:
        return losses[0][1], losses[0][2]
    total = sum(rows for rows, _, _ in losses)

    def over(values: list[Tensor]) -> Tensor:
        shares = [rows / total for rows, _, _ in losses]
        return torch.stack([share * value.detach() for share, value in zip(shares, values, strict=True)]).sum()

    names = list(losses[0][2])
    return over([loss for _, loss, _ in losses]), {name: over([own[name] for _, _, own in losses]) for name in names}


class _PartRng(Rng):
    """Rows of the draws of a whole batch, which its parts share: the first part makes them.

    Args:
        whole: makes the draws.
        rows: of the whole batch.
        first: row of this part.
        drawn: the draws so far.
    """

    def __init__(self, whole: Rng, rows: int, first: int, drawn: list[Tensor]) -> None:
        self._whole, self._rows, self._first, self._drawn = whole, rows, first, drawn
        self._calls = [0]  # shared with `on`, as the sequence of draws is

    def on(self, device: torch.device | str) -> Rng:
        other = copy.copy(self)
        other._whole = self._whole.on(device)
        return other

    def normal(self, shape: Sequence[int]) -> Tensor:
        return self._cut("normal", shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return self._cut("uniform", shape)

    def _cut(self, kind: str, shape: Sequence[int]) -> Tensor:
        number = self._calls[0]
        self._calls[0] += 1
        if number == len(self._drawn):
            self._drawn.append(getattr(self._whole, kind)((self._rows, *shape[1:])))
        return self._drawn[number][self._first : self._first + shape[0]]
