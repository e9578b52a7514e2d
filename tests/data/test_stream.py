"""The rows of a step, their crops and flips are functions of seed and step, for any number of workers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.data.pairs import Pairs, write_pairs
from genflow.data.shard_format import write_shard
from genflow.data.shards import Dataset, Split, map_stream
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


def stripes(path: Path, shape: tuple[int, int], count: int = 40) -> Path:
    """Pictures with a ramp along their width; the level also tells the picture."""
    path.mkdir(exist_ok=True)
    ramp = np.linspace(0, 200, shape[1])
    for number in range(count):
        pixels = np.broadcast_to(ramp + number, shape).astype(np.uint8)
        Image.fromarray(pixels if number % 2 else pixels.T).save(path / f"{number}.png")
    return path


@pytest.mark.parametrize("crop", ["center", "random"])
def test_augmentation_is_a_function_of_seed_epoch_and_row(
    prepared: Callable[..., Dataset], tmp_path: Path, crop: str
) -> None:
    """Any number of workers, and a stream that starts at a later step, read the same bits; epochs and seeds differ."""
    split = prepared(stripes(tmp_path / "x", (16, 32)), val=0, size=16, crop=crop).splits["train"]

    def stream(seed: int = 3, rank: int = 0, world: int = 1) -> Stream:
        return Stream(split, 40, seed, rank, world, flip=True)

    for step in range(3):
        alone = stream()(step)
        parts = [stream(rank=rank, world=3)(step) for rank in range(3)]
        assert torch.equal(torch.cat([part.x for part in parts]), alone.x)
        assert not torch.equal(stream(seed=4)(step).x.sort(0).values, alone.x.sort(0).values)
    first, second = (stream()(step).x[np.argsort(stream().rows(step))] for step in (0, 1))  # the same rows
    assert not torch.equal(first, second)


def test_flips_are_half_of_the_rows(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """Each picture is flipped or not, with equal probability; the order of the rows is the same."""
    split = prepared(stripes(tmp_path / "x", (16, 16), 400), val=0, size=16).splits["train"]
    plain, flipping = Stream(split, 400, 0), Stream(split, 400, 0, flip=True)
    assert np.array_equal(plain.rows(5), flipping.rows(5))
    before, after = plain(5).x, flipping(5).x
    flipped = (before != after).flatten(1).any(1)
    odd = torch.from_numpy(np.array([int(split.ids[row].partition(".")[0]) % 2 == 1 for row in plain.rows(5)]))
    assert 0.4 < flipped[odd].float().mean() < 0.6
    assert not flipped[~odd].any()  # vertical ramps are symmetric
    assert torch.equal(after[flipped], before[flipped].flip(3))


def test_random_crops_are_parts_of_the_picture(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """A crop of a wide or tall picture starts anywhere along its long side; other readers see the centre."""
    dataset = prepared(stripes(tmp_path / "x", (16, 32)), size=16, crop="random")
    split = dataset.splits["train"]
    assert split.pixels.shape[1:] == (16, 16, 1)
    strips, extents = split.strips(np.arange(len(split)))
    assert set(extents.tolist()) == {32, -32}
    wide = extents < 0
    assert np.array_equal(split.pixels[wide], strips[wide, 8:24].transpose(0, 2, 1, 3))
    assert np.array_equal(split.pixels[~wide], strips[~wide, 8:24])
    starts = set()
    for step in range(20):
        batch, rows = Stream(split, len(split), 0)(step), Stream(split, len(split), 0).rows(step)
        for x, row in zip(batch.x, rows, strict=True):
            picture = np.rint((x[0].numpy() + 1) * 128 - 0.5)
            strip = strips[row, :, :, 0]
            found = picture.T if extents[row] < 0 else picture
            starts.add(next(s for s in range(17) if np.array_equal(strip[s : s + 16], found)))
    assert starts == set(range(17))


def test_pairs_are_not_flipped(tmp_path: Path) -> None:
    """The noise of a pair belongs to its picture as it is."""
    rng = np.random.default_rng(0)
    noise, x = (rng.normal(size=(8, 1, 2, 2)).astype(np.float32) for _ in range(2))
    write_pairs(tmp_path / "a.arrow", FACTS, np.arange(8), np.zeros(8), noise, x)
    pairs = Pairs((map_stream(tmp_path / "a.arrow"),), FACTS)
    stream = Stream(pairs, 8, 0, flip=True)
    assert torch.equal(stream(0).x, torch.from_numpy(x[stream.rows(0)]))
