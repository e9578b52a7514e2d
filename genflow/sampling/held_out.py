"""Rows that training does not see, as batches for a family: the validation split, else the test split."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from genflow.batch import Batch
from genflow.data.shards import Dataset
from genflow.data.texts import Texts
from genflow.families.base import Family
from genflow.sampling.engine import latents_of

SPLITS = ("val", "test")


def held_out(
    data: Dataset, groups: int, device: str, texts: Texts | None = None, autoencoder: Family | None = None
) -> Callable[[int], Iterator[Batch]] | None:
    """A function that returns about so many rows in groups; None if training sees all rows.

    The rows are evenly spaced, and each group has its share of every part, because rows may be sorted by class.

    Args:
        data: the pictures or points, also if the family learns latents.
        groups: the number of batches, if there are as many rows.
        device: of the batches.
        texts: the embeddings of the captions, of which the first one of a row stands in the place of its label.
        autoencoder: makes the latents of the rows; None: the family learns pictures or points.
    """
    name = next((name for name in SPLITS if data.facts.splits.get(name)), "")
    if not name:
        return None
    split = data.splits[name]
    if autoencoder:
        autoencoder = autoencoder.to(device)

    def batches(count: int) -> Iterator[Batch]:
        rows = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).astype(int))
        for group in range(min(groups, len(rows))):
            own = rows[group::groups]
            batch = split.batch(own, torch.device(device))
            if autoencoder:
                batch = replace(batch, x=latents_of(autoencoder, batch.x))
            if texts:
                captions = [found[0] if found else "" for found in split.column("captions", own)]
                batch = replace(batch, label=texts.text(captions, device))
            yield batch

    return batches
