"""The rows of a step are a function of seed and step, for any number of workers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.data.shards import Split, map_stream, write_shard
from genflow.data.stream import Stream, rank_range
from genflow.specs import DataSpec

FACTS = DataSpec((1, 2, 2), levels=17, class_names=("a", "b", "c"))
ROWS = 37


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """37 pictures in two shards; all pixels of picture i have the level i % 17."""
    tables = []
    for number, rows in enumerate((range(20), range(20, ROWS))):
        values = np.array([np.full((2, 2, 1), i % 17) for i in rows], np.uint8)
        labels = np.array([i % 3 for i in rows])
        write_shard(tmp_path / f"{number}.arrow", FACTS, values, [str(i) for i in rows], labels)
        tables.append(map_stream(tmp_path / f"{number}.arrow"))
    return Split("train", tuple(tables), FACTS)


@pytest.mark.parametrize("world", [1, 2, 3, 10])
def test_concatenated_rows_of_workers_equal_the_batch_of_one_worker(split: Split, world: int) -> None:
    """The order is the same, also for a batch that crosses the end of an epoch."""
    alone = Stream(split, 10, seed=4)
    workers = [Stream(split, 10, 4, rank, world) for rank in range(world)]
    for step in range(12):
        assert np.array_equal(np.concatenate([w.rows(step) for w in workers]), alone.rows(step))


@pytest.mark.parametrize("batch", [1, 10, 37, 50])
def test_every_epoch_is_a_permutation(split: Split, batch: int) -> None:
    """Each epoch contains every row once, in another order; a batch may be larger than an epoch."""
    stream = Stream(split, batch, seed=0)
    rows = np.concatenate([stream.rows(step) for step in range(-(-3 * ROWS // batch))])[: 3 * ROWS].reshape(3, ROWS)
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in rows)
    assert len({tuple(epoch) for epoch in rows}) == 3


def test_a_step_is_a_function_of_seed_and_step(split: Split) -> None:
    """Steps can be read in any order by another stream with equal rows; another seed gives another order."""
    one, other = Stream(split, 8, seed=1), Stream(split, 8, seed=1)
    later = other.rows(9).tolist()
    assert [one.rows(s).tolist() for s in range(10)][9] == later
    assert Stream(split, 8, seed=2).rows(9).tolist() != later


def test_a_batch_is_the_rows_pixels_and_labels(split: Split) -> None:
    """x has the bin centres (2k + 1)/17 - 1 and the labels of its rows, from both shards."""
    stream = Stream(split, 10, seed=0)
    batch, rows = stream(3), torch.from_numpy(stream.rows(3))
    assert len(batch) == 10
    torch.testing.assert_close(batch.x[:, 0, 0, 0], (2 * (rows % 17) + 1) / 17 - 1)
    assert torch.equal(batch.label, rows % 3)
    assert batch.noise is None


@pytest.mark.parametrize(("batch", "world"), [(32, 1), (32, 3), (7, 4), (5, 5)])
def test_rank_ranges_differ_by_at_most_one_row(batch: int, world: int) -> None:
    """The ranges are contiguous and cover the batch, and none is empty."""
    bounds = [rank_range(batch, rank, world) for rank in range(world)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == batch
    assert all(a[1] == b[0] for a, b in zip(bounds, bounds[1:], strict=False))
    sizes = {stop - start for start, stop in bounds}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
