"""Plan a dataset, as values: the rows of each shard, and the image specification.

The plan does not depend on the executor. The source and the options alone decide which row is in which shard, so the
bytes are the same for any number of workers:

- the held-out rows are the first of a permutation that depends on the seed;
- the rows of a split, in order, are cut into shards of a size that depends on their number;
- an unreadable row is left out of its shard and moves no other row.
"""

import math
from pathlib import Path

import numpy as np

from genflow.data import images
from genflow.data.shard_writer import ShardTask
from genflow.data.sources.base import ImageSpec, ImageSummary, Part, Source
from genflow.errors import DataError
from genflow.recipe.schema import Data
from genflow.specs import DataSpec
from genflow.system import source_hash
from genflow.system.source_hash import digest

SPLITS = ("train", "val", "test")
SHARD_ROWS = 4096
SHARD_BYTES = 2**26
SHARDS_BEFORE_FULL = 32  # shards of a split before their size grows to `SHARD_ROWS`
DEFAULT_SIDE = 64  # pixels, if the pictures have no common size up to it and no size was requested
HELD_OUT_STREAM = 1  # names the permutation's random generator, in addition to the seed


def address_hash(source: Source, data: Data) -> str:
    """The end of a dataset's id: a hash of the options, the source's listing and the code. No picture is decoded."""
    options = {"size": data.size, "channels": data.channels, "val": data.val, "seed": data.seed}
    made_by = source_hash.code_of("genflow/data/prepare.py", also=("genflow/data/sources",))  # loaded by name
    return digest({"options": options, "source": source.listing(), "code": made_by})


def summary_parts(source: Source) -> list[Part]:
    """The parts to summarize, for a source whose summary needs reading every file."""
    parts = []
    for split, count in source.splits().items():
        rows = np.arange(count)
        parts += [source.part(split, rows[start : start + SHARD_ROWS]) for start in range(0, count, SHARD_ROWS)]
    return parts


def image_spec(source: Source, data: Data, summary: ImageSummary) -> ImageSpec:
    """The specification of the images: every picture is converted to it.

    The side is `data.size` if given; else the short side of the pictures, if they have one size and it is at most 64;
    else 64. There are three channels if any picture is in colour.

    Raises:
        DataError: the range of the pixel values has no known meaning.
    """
    if summary.low <= summary.high and not images.has_scale(summary.low, summary.high):
        raise DataError(
            f"the pixels of {source.about['path']} range from {summary.low:g} to {summary.high:g}, an unknown scale",
            "store them as bytes 0 to 255, or as fractions from 0 to 1 or from -1 to 1",
        )
    short = min(summary.size) if summary.size else DEFAULT_SIDE + 1
    side = data.size or (max(4, short) if short <= DEFAULT_SIDE else DEFAULT_SIDE)
    channels = data.channels if data.channels != "auto" else 3 if summary.colour else 1
    return ImageSpec(side, channels, source.levels or 256, summary.low, summary.high)


def initial_spec(source: Source, spec: ImageSpec) -> DataSpec:
    """The part of the dataset's specification that is known before any record is read."""
    if source.levels is None:
        return DataSpec((2, 1, 1), None, source.class_names(), scale=source.scale)
    return DataSpec(spec.shape, spec.levels, source.class_names())


def assign_rows(source: Source, data: Data) -> dict[str, tuple[str, np.ndarray]]:
    """The rows of each split: the source's split that contains them, and their numbers in ascending order."""
    own = source.splits()
    rows = {split: (split, np.arange(own[split])) for split in SPLITS if split in own}
    count = own["train"]
    if "val" not in own and (held := int(data.val * count)):
        order = np.random.default_rng([data.seed, HELD_OUT_STREAM]).permutation(count)
        rows |= {"train": ("train", np.sort(order[held:])), "val": ("train", np.sort(order[:held]))}
    return {split: rows[split] for split in SPLITS if split in rows}


def plan_shards(source: Source, data: Data, spec: ImageSpec, folder: Path) -> list[ShardTask]:
    """Every shard of the dataset, in order. Creates the folders of the splits."""
    facts = initial_spec(source, spec)
    row_bytes = max(1, facts.dims)
    most = max(1, min(SHARD_ROWS, SHARD_BYTES // row_bytes))
    planned = []
    for split, (origin, rows) in assign_rows(source, data).items():
        size = min(most, max(source.smallest_shard, math.ceil(len(rows) / SHARDS_BEFORE_FULL)))
        total = math.ceil(len(rows) / size)
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(total):
            part = source.part(origin, rows[number * size :][:size])
            planned.append(ShardTask(str(folder / split), split, number, total, part, spec, facts))
    return planned
