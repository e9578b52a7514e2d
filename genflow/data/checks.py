"""Warnings about a dataset that is readable and yet not what a person expects, one plain sentence each.

The input is what the workers return for each shard, so the warnings do not depend on the number of workers.
`python -m benchmarks.near_copies` measures which copies `NEAR_BITS` and `NEAR_RMS` find, and how many false ones.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genflow.data import encoding
from genflow.data.shard_writer import ShardResult
from genflow.data.shards import Split, map_stream
from genflow.data.sources.base import ImageSpec, ImageSummary
from genflow.errors import DataError
from genflow.recipe.schema import Data
from genflow.specs import DataSpec

CHECKED = 1000  # held-out pictures that are compared with all training pictures; and pairs of pictures
NEAR_BITS = 10  # bits in which the perceptual hashes of near copies may differ
NEAR_RMS = 0.15  # root mean square difference of near copies, relative to the data's standard deviation
NEAR_SHARE = 0.01  # share of the held-out pictures above which near copies are reported
COPIES = 0.001  # share of identical pictures above which they are reported
FEW = 5  # training pictures of a class
BLACK, WHITE, FLAT = 0.1, 0.9, 0.04  # of the grey levels: the largest, the smallest, and their difference
ENLARGED = 2  # a picture that is enlarged by this factor is blurred
KEPT = 66  # percent of a picture that a crop keeps; cameras make pictures of 4:3 and 3:2, which keep 75 and 67
KEPT_SHARE = 0.1  # share of the pictures above which the crop is reported
BITS = (10, 12, 14)  # bits of cameras and scanners that write 16-bit files
NAMED = 5  # classes that a warning names


def check(
    facts: DataSpec, data: Data, spec: ImageSpec, summary: ImageSummary, written: Sequence[ShardResult], folder: Path
) -> list[str]:
    """The warnings about a dataset of pictures; none for points.

    Args:
        facts: the complete specification of the dataset.
        data: the options that were given.
        spec, summary: what the pictures were converted to, and from.
        written: the results of all shards, in order.
        folder: contains the written shards.

    Raises:
        DataError: all pictures are identical.
    """
    if facts.is_points:
        return []
    dark = _range(summary, spec, written)
    checks = (
        _copies(written),
        _near_copies(facts, written, folder),
        _small_classes(facts),
        dark,
        "" if dark else _flat(facts, written, folder),
        _enlarged(summary, spec.side),
        _cropped(summary, data, spec),
        _captions(facts, written, folder),
        _lossy(facts, written),
    )
    return [line for line in checks if line]


def column(written: Sequence[ShardResult], name: str, splits: Sequence[str] = ("train", "val", "test")) -> np.ndarray:
    """One of the statistics of all pictures of some splits, in order."""
    arrays = [getattr(shard.statistics, name) for shard in written if shard.split in splits]
    return np.concatenate(arrays or [np.zeros(0, np.uint64)])


def _copies(written: Sequence[ShardResult]) -> str:
    hashes = column(written, "exact")
    distinct = len(np.unique(hashes))
    if distinct == 1 and len(hashes) > 1:
        raise DataError(f"all {len(hashes):,} pictures are identical, so a model has nothing to learn")
    copies = len(hashes) - distinct
    if not copies:
        return ""
    held_out = column(written, "exact", ("val", "test"))
    both = int(np.isin(held_out, column(written, "exact", ("train",))).sum())
    if not both and copies < COPIES * len(hashes):
        return ""
    line = f"{copies:,} of {len(hashes):,} pictures {_are(copies)} identical to an earlier one"
    if both:  # in the source's own splits; rows that genflow holds out are never copies
        return f"{line}, and {both:,} of {len(held_out):,} held-out pictures {_are(both)} also in train; remove these"
    return f"{line}; copies stay together in one split"


def _near_copies(facts: DataSpec, written: Sequence[ShardResult], folder: Path) -> str:
    """A warning if nearly all pictures, or many held-out ones, differ from a training picture in details only."""
    train, limit = _split(facts, written, folder, "train"), NEAR_RMS * facts.sigma_data * (facts.levels or 256) / 2
    pairs = np.random.default_rng(0).permutation(len(train))[: 2 * CHECKED]
    half = len(pairs) // 2
    if half and np.median(_rms(train, pairs[:half], train, pairs[half : 2 * half])) < limit:
        return "nearly all pictures are the same picture with small differences; metrics such as fd have no meaning"
    name = next((name for name in ("val", "test") if facts.splits.get(name)), "")
    if not name:
        return ""
    held_out, count = _split(facts, written, folder, name), facts.splits[name]
    chosen = np.unique(np.linspace(0, count - 1, min(count, CHECKED)).astype(np.int64))
    near, known = column(written, "near", (name,)), column(written, "near", ("train",))
    nearest = np.array([int(np.bitwise_count(known ^ near[row]).argmin()) for row in chosen])
    alike = np.bitwise_count(known[nearest] ^ near[chosen]) <= NEAR_BITS
    chosen, nearest, checked = chosen[alike], nearest[alike], len(chosen)
    distance = _rms(held_out, chosen, train, nearest)
    found = np.flatnonzero((distance > 0) & (distance < limit))  # `_copies` reports identical pictures
    if len(found) < NEAR_SHARE * checked or not len(found):
        return ""
    example = f"{held_out.ids[chosen[found[0]]]} and {train.ids[nearest[found[0]]]}"
    count = len(found)
    return (
        f"{count:,} of {checked:,} held-out pictures ({count / checked:.0%}) {_are(count)} nearly identical "
        f"to a training picture, such as {example}; put such pictures together into folders train/ and val/"
    )


def _split(facts: DataSpec, written: Sequence[ShardResult], folder: Path, name: str) -> Split:
    files = [folder / name / shard.file for shard in written if shard.split == name and shard.rows]
    return Split(name, tuple(map_stream(file) for file in files), facts)


def _rms(one: Split, rows: np.ndarray, other: Split, others: np.ndarray) -> np.ndarray:
    """The root mean square differences of pairs of pictures, in grey levels."""
    found = np.zeros(len(rows))
    for start in range(0, len(rows), 64):
        pair = one.take(rows[start : start + 64]), other.take(others[start : start + 64])
        difference = pair[0].astype(np.float32) - pair[1]
        found[start : start + 64] = np.sqrt((difference**2).mean((1, 2, 3)))
    return found


def _small_classes(facts: DataSpec) -> str:
    small = [(name, rows) for name, rows in zip(facts.class_names, facts.class_counts, strict=True) if rows < FEW]
    if not small:
        return ""
    names = ", ".join(f"{name} ({rows})" for name, rows in small[:NAMED]) + (", ..." if len(small) > NAMED else "")
    return (
        f"{len(small)} of {facts.classes} classes {'has' if len(small) == 1 else 'have'} fewer than {FEW} training "
        f"pictures: {names}; a model cannot learn {'it' if len(small) == 1 else 'them'}"
    )


def _range(summary: ImageSummary, spec: ImageSpec, written: Sequence[ShardResult]) -> str:
    """A warning about 16-bit values of which the highest bits are unused, or about `bits` without 16-bit values."""
    if not summary.deep:
        return f"--bits {spec.bits} changes nothing: no picture has 16-bit grey values" if spec.bits < 16 else ""
    top = int(column(written, "high").max())
    for bits in BITS:
        # resampling overshoots, so the limit is higher by a fifth
        if bits < spec.bits and top <= 1.2 * 255 * (2**bits - 1) / (2**spec.bits - 1):
            dark = "nearly black" if bits < BITS[-1] else "dark"
            return (
                f"the brightest pixel has the level {top} of 255, so the pictures are {dark}; "
                f"if the 16-bit values of the source have {bits} bits, use --bits {bits}"
            )
    return ""


def _flat(facts: DataSpec, written: Sequence[ShardResult], folder: Path) -> str:
    most = (facts.levels or 256) - 1
    low, high = column(written, "low") / most, column(written, "high") / most
    black, white = high < BLACK, low > WHITE
    plain = ~black & ~white & (high - low < FLAT)
    flat = black | white | plain
    count = int(flat.sum())
    if not count:
        return ""
    kinds = {"black": black.sum(), "white": white.sum(), "of one colour": plain.sum()}
    text = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items() if number)
    first = int(flat.argmax())
    for shard in written:
        if first < shard.rows:
            id = map_stream(folder / shard.split / shard.file).column("id")[first].as_py()
            break
        first -= shard.rows
    return f"{count:,} of {len(flat):,} pictures {_are(count)} nearly empty ({text}), such as {id}"


def _enlarged(summary: ImageSummary, side: int) -> str:
    total = sum(summary.shapes.values())
    small = {short: 0 for short, _ in summary.shapes if ENLARGED * short <= side}
    for (short, _), number in summary.shapes.items():
        if short in small:
            small[short] += number
    count = sum(small.values())
    if not count:
        return ""
    return (
        f"{count:,} of {total:,} pictures {_are(count)} enlarged to {side} x {side}, "
        f"the smallest from {min(small)} pixels, and look blurred; --size {max(4, min(small))} avoids that"
    )


def _cropped(summary: ImageSummary, data: Data, spec: ImageSpec) -> str:
    if spec.crop != data.crop:
        return f"--crop {data.crop} changes nothing: all pictures are square"
    if spec.crop != "center":
        return ""
    total = sum(summary.shapes.values())
    wide = {kept: 0 for _, kept in summary.shapes if kept < KEPT}
    for (_, kept), number in summary.shapes.items():
        if kept in wide:
            wide[kept] += number
    count = sum(wide.values())
    if not count or count < KEPT_SHARE * total:
        return ""
    return (
        f"the crop to a square drops more than a third of {count:,} of {total:,} pictures, up to {100 - min(wide)} %; "
        "--crop none pads them instead, and --crop random trains on all their parts"
    )


def _captions(facts: DataSpec, written: Sequence[ShardResult], folder: Path) -> str:
    """A warning if some pictures have no caption, or if all have the same."""
    if not facts.captions:
        return ""
    total, without, first, texts = 0, 0, "", set[tuple[str, ...]]()
    for shard in written:
        total += shard.rows
        without += shard.rows - shard.captions
        if shard.rows and (len(texts) < 2 or (not first and shard.captions < shard.rows)):
            split = Split(shard.split, (map_stream(folder / shard.split / shard.file),), facts)
            first = first or next((split.ids[row] for row, one in enumerate(split.captions) if not one), "")
            texts |= {one for one in split.captions if one}
    if without:
        return f"{without:,} of {total:,} pictures have no caption, first {first}"
    if total > 1 and len(texts) == 1:
        return f"all captions are {next(iter(texts))[0][:60]!r}, so a model learns nothing from them"
    return ""


def _lossy(facts: DataSpec, written: Sequence[ShardResult]) -> str:
    if not encoding.is_lossy(facts.encoding):
        return ""
    changed = math.sqrt(sum(shard.lost for shard in written) / (facts.dims * sum(facts.splits.values())))
    return (
        f"{encoding.describe(facts.encoding)}: pixels differ from the source's by {changed:.2g} of "
        f"{(facts.levels or 256) - 1} levels (root mean square); --encoding webp is lossless"
    )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
