"""The plan of a dataset, as values: which rows go into which shard, in which spec, and what follows from them.

Nothing here knows who carries it out. Which row is in which shard depends on the source and the options alone,
so the bytes are the same whatever the number of workers:

- rows that are held out are the first of a permutation that depends on the seed;
- a split's rows, in order, are cut into shards of a size that depends on their number;
- a row that cannot be read is left out of its shard and moves no other row.
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
SHARDS_BEFORE_FULL = 32  # a split is cut into as many shards before they grow to their full size
DEFAULT_SIDE = 64  # pixels, where the pictures have no common size below it and nobody says otherwise
HELD_OUT_STREAM = 1  # what the permutation's generator is called, beside the seed


def address_hash(source: Source, data: Data) -> str:
    """What a dataset's id ends with: a hash of the options, the source's listing, and the code; nothing is decoded."""
    options = {"size": data.size, "channels": data.channels, "val": data.val, "seed": data.seed}
    made_by = source_hash.code_of("jobs/prepare.py", also=("genflow/data/sources",))  # sources are loaded by name
    return digest({"options": options, "source": source.listing(), "code": made_by})


def summary_parts(source: Source) -> list[Part]:
    """The parts to survey, where a source must be looked at."""
    parts = []
    for split, count in source.splits().items():
        rows = np.arange(count)
        parts += [source.part(split, rows[start : start + SHARD_ROWS]) for start in range(0, count, SHARD_ROWS)]
    return parts


def image_spec(source: Source, data: Data, summary: ImageSummary) -> ImageSpec:
    """The form that every picture is brought into.

    The side is `data.size`; else the pictures' own short side if all have one size and it is at most 64; else
    64. There are three channels if any picture is in colour.

    Raises:
        DataError: numbers whose range has no known meaning.
    """
    if summary.low <= summary.high and not images.has_scale(summary.low, summary.high):
        raise DataError(
            f"the pixels of {source.about['path']} run from {summary.low:g} to {summary.high:g}",
            "store them as bytes, or as fractions from 0 to 1 or from -1 to 1",
        )
    short = min(summary.size) if summary.size else DEFAULT_SIDE + 1
    side = data.size or (max(4, short) if short <= DEFAULT_SIDE else DEFAULT_SIDE)
    channels = data.channels if data.channels != "auto" else 3 if summary.colour else 1
    return ImageSpec(side, channels, source.levels or 256, summary.low, summary.high)


def initial_spec(source: Source, spec: ImageSpec) -> DataSpec:
    """The facts that are known before a record is read."""
    if source.levels is None:
        return DataSpec((2, 1, 1), None, source.class_names(), scale=source.scale)
    return DataSpec(spec.shape, spec.levels, source.class_names())


def assign_rows(source: Source, data: Data) -> dict[str, tuple[str, np.ndarray]]:
    """Each split's rows, as the source's split that they lie in and their numbers, ascending."""
    own = source.splits()
    rows = {split: (split, np.arange(own[split])) for split in SPLITS if split in own}
    count = own["train"]
    if "val" not in own and (held := int(data.val * count)):
        order = np.random.default_rng([data.seed, HELD_OUT_STREAM]).permutation(count)
        rows |= {"train": ("train", np.sort(order[held:])), "val": ("train", np.sort(order[:held]))}
    return {split: rows[split] for split in SPLITS if split in rows}


def plan_shards(source: Source, data: Data, spec: ImageSpec, folder: Path) -> list[ShardTask]:
    """Every shard of the dataset, in order; the splits' folders are made."""
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
