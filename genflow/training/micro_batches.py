"""A step in several parts (gradient accumulation): the rows of a batch one after another, with the draws of the whole.

A loss is a mean over rows, so the sum of the parts' gradients, each weighted by its share of the rows, is the gradient
of the batch, up to rounding. Every row has the draws that it has without parts.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from genflow.batch import Batch
from genflow.data.stream import rank_range
from genflow.maths.guidance import cat_labels
from genflow.maths.rng import BatchRng

Numbers = dict[str, Tensor]


def micro_batches(batch: Batch, rng: BatchRng, parts: int) -> Iterator[tuple[Batch, BatchRng, bool]]:
    """Each part of a worker's rows, with its random draws, and whether it is the last.

    Args:
        batch: the rows of this worker.
        rng: of their draws, of which there is none yet.
        parts: at most as many as rows.
    """
    if parts == 1:
        yield batch, rng, True
        return
    for number in range(parts):
        first, last = rank_range(len(batch), number, parts)
        rows = slice(first, last)
        noise = None if batch.noise is None else batch.noise[rows]
        part = Batch(batch.x[rows], batch.label[rows], noise)
        yield part, rng.part(first), number == parts - 1


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


def together(batches: Iterable[Batch], most: int) -> Iterator[list[Batch]]:
    """Consecutive batches in lists of at most `most` rows in all, or of one batch."""
    found: list[Batch] = []
    for batch in batches:
        if found and sum(map(len, found)) + len(batch) > most:
            yield found
            found = []
        found.append(batch)
    if found:
        yield found


def joined(batches: Sequence[Batch]) -> Batch:
    """The rows of batches without noise, one batch after another."""
    if len(batches) == 1:
        return batches[0]
    return Batch(torch.cat([batch.x for batch in batches]), cat_labels([batch.label for batch in batches]))
