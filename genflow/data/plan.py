"""Plan a dataset, as values: the rows of each shard, and the image specification.

The plan does not depend on the executor. The source and the options alone decide which row is in which shard, so the
bytes are the same for any number of workers:

- the held-out rows are the first of a permutation that depends on the seed; copies of one picture stay in one split;
- the rows of a split, in order, are cut into shards of a size that depends on their number;
- an unreadable row is left out of its shard and moves no other row.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genflow.data import images, strips
from genflow.data.shard_writer import ShardResult, ShardTask
from genflow.data.sources.base import ImageSpec, ImageSummary, Part, Source
from genflow.errors import DataError
from genflow.recipe.schema import Data
from genflow.specs import RAW, DataSpec
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
    names = {"size", "channels", "bits", "crop", "labels", "captions", "val", "seed"}
    if data.encoding != RAW:  # pixels keep the addresses that they had before there were encodings
        names.add("encoding")
    options = data.model_dump(mode="json", include=names)
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
    if summary.deep and 2**data.bits <= summary.high:
        raise DataError(
            f"the pixels of {source.about['path']} range up to {summary.high:g}, more than {data.bits} bits hold",
            f"--bits {int(summary.high).bit_length()}",
        )
    short = min(summary.size) if summary.size else DEFAULT_SIDE + 1
    side = data.size or (max(4, short) if short <= DEFAULT_SIDE else DEFAULT_SIDE)
    crop = data.crop if any(kept < 100 for _, kept in summary.shapes) else "center"  # all are square
    channels = data.channels if data.channels != "auto" else 3 if summary.colour else 1
    return ImageSpec(side, channels, source.levels or 256, summary.low, summary.high, data.bits, crop)


def initial_spec(source: Source, data: Data, spec: ImageSpec) -> DataSpec:
    """The part of the dataset's specification that is known before any record is read."""
    names = () if data.labels == "none" else source.class_names()
    if source.levels is None:
        return DataSpec((2, 1, 1), None, names, scale=source.scale)
    strip = strips.LENGTH * spec.side if spec.crop == "random" else 0
    crop = "none" if data.crop == "none" else "center"  # also if all pictures are square: a user's may not be
    captions = source.captions and data.captions != "none"
    return DataSpec(
        spec.shape, spec.levels, names, strip=strip, captions=captions, crop=crop, bits=data.bits,
        encoding=data.encoding,
    )  # fmt: skip


def assign_rows(source: Source, data: Data, groups: np.ndarray | None = None) -> dict[str, tuple[str, np.ndarray]]:
    """The rows of each split: the source's split that contains them, and their numbers in ascending order.

    Args:
        source: its own split `val`, if any, is kept.
        data: the fraction that is held out otherwise.
        groups: (N,) the group of each row; a group is held out as a whole or not at all. None: each row is alone.
    """
    own = source.splits()
    rows = {split: (split, np.arange(own[split])) for split in SPLITS if split in own}
    count = own["train"]
    if "val" not in own and (held := int(data.val * count)):
        order = np.random.default_rng([data.seed, HELD_OUT_STREAM]).permutation(count)
        chosen = np.zeros(count, bool)
        chosen[order[:held] if groups is None else _whole_groups(order, groups, held)] = True
        rows |= {"train": ("train", np.flatnonzero(~chosen)), "val": ("train", np.flatnonzero(chosen))}
    return {split: rows[split] for split in SPLITS if split in rows and len(rows[split][1])}


def _whole_groups(order: np.ndarray, groups: np.ndarray, most: int) -> np.ndarray:
    """At most `most` rows: whole groups in the order of their first row, without those that no longer fit."""
    found, first = np.unique(groups[order], return_index=True)
    sizes = np.bincount(groups)
    chosen = np.zeros(len(sizes), bool)
    for group in found[np.argsort(first)]:
        if sizes[group] <= most:
            chosen[group] = True
            most -= int(sizes[group])
        if not most:
            break
    return np.flatnonzero(chosen[groups])


def groups_of_copies(source: Source, written: Sequence[ShardResult]) -> np.ndarray | None:
    """The groups of identical pictures, if the first assignment of rows puts copies into both train and val.

    Args:
        source: the origin of the rows.
        written: the results of all shards.

    Returns:
        (N,) for each row of the source's training split, the first row with the same pixels; None if no group is split.
    """
    if "val" in source.splits() or source.levels is None:
        return None
    parts = [shard for shard in written if shard.split in ("train", "val")]
    held_out = np.concatenate([np.full(shard.rows, shard.split == "val") for shard in parts])
    rows = np.concatenate([shard.origin for shard in parts])
    hashes = np.concatenate([shard.statistics.exact for shard in parts])
    if not np.isin(hashes[held_out], hashes[~held_out]).any():
        return None
    order = np.argsort(rows)
    _, first, index = np.unique(hashes[order], return_index=True, return_inverse=True)
    groups = np.arange(source.splits()["train"])
    groups[rows[order]] = rows[order][first[index]]
    return groups


def plan_shards(
    source: Source, data: Data, spec: ImageSpec, folder: Path, groups: np.ndarray | None = None
) -> list[ShardTask]:
    """Every shard of the dataset, in order. Creates the folders of the splits; `groups` as in `assign_rows`."""
    facts = initial_spec(source, data, spec)
    row_bytes = max(1, facts.dims + facts.strip * spec.side * spec.channels)
    most = max(1, min(SHARD_ROWS, SHARD_BYTES // row_bytes))
    planned = []
    for split, (origin, rows) in assign_rows(source, data, groups).items():
        size = min(most, max(source.smallest_shard, math.ceil(len(rows) / SHARDS_BEFORE_FULL)))
        total = math.ceil(len(rows) / size)
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(total):
            chosen = rows[number * size :][:size]
            part = source.part(origin, chosen)
            planned.append(ShardTask(str(folder / split), split, number, total, chosen, part, spec, facts))
    return planned
