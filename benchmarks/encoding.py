"""Measure the encodings of pictures in shards: bytes, errors, and pictures per second.

    python -m benchmarks.encoding [--photographs /usr/share/backgrounds/mate/nature] [--rows 192] [--rounds 7]

Prints a Markdown table of emoji, and of squares of photographs: an eighth of their size at 64 pixels, a half at 256.
Each encoding is a shard in a temporary folder. `MB` is for 100,000 pictures. Writing is one core's processor time. Rows
are read in random batches of 32, as a training reads them, by one and by two threads; each figure is the best round,
because other programs run here, too. One encoding is measured that genflow does not offer: WebP of quality 95.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from genflow.data import encoding
from genflow.data.encoding import CODECS, Codec
from genflow.data.shard_format import write_shard
from genflow.data.shards import Split, map_stream
from genflow.data.sources.base import BadRecord, ImageSpec
from genflow.data.sources.find import find
from genflow.errors import SetupError
from genflow.recipe.schema import Data
from genflow.specs import RAW, DataSpec

BATCH = 32
HEADS = ("MB", "of raw", "rms error", "written/s", "read/s, 1 thread", "2 threads")
OTHER = {"webp, quality 95": Codec("WEBP", {"quality": 95, "method": 4}, "quality 95")}


def emoji(rows: int) -> np.ndarray:
    """Different emoji of 64 x 64 pixels, (N, 64, 64, 3)."""
    source = find(Data(source="emoji"))
    chosen = np.sort(np.random.default_rng(0).permutation(source.splits()["train"])[:rows])
    found = source.part("train", chosen).records(ImageSpec(64, 3))
    return np.stack([record.value for record in found if not isinstance(record, BadRecord)])


def squares(photographs: Path, side: int, scale: float, rows: int) -> np.ndarray:
    """Squares that do not overlap, of photographs that are made smaller, (N, side, side, 3)."""
    found = []
    for file in sorted(photographs.iterdir()):
        with Image.open(file) as opened:
            whole = opened.convert("RGB")
        size = round(whole.width * scale), round(whole.height * scale)
        pixels = np.asarray(whole.resize(size, Image.Resampling.LANCZOS))
        corners = ((y, x) for y in range(0, size[1] - side + 1, side) for x in range(0, size[0] - side + 1, side))
        found += [pixels[y : y + side, x : x + side] for y, x in corners]
    return np.stack([found[i] for i in np.random.default_rng(0).permutation(len(found))[:rows]])


def measure(pictures: np.ndarray, name: str, rounds: int) -> list[float]:
    """Megabytes of 100,000 pictures, their share of raw ones, the error, and pictures per second: see `HEADS`."""
    count, side = pictures.shape[:2]
    facts = replace(DataSpec((3, side, side), 256), encoding=name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shard.arrow"
        write_shard(file, facts, pictures[:8], list("abcdefgh"))  # loads Pillow's plugin
        begun = time.process_time()
        write_shard(file, facts, pictures, [str(row) for row in range(count)])
        written = count / (time.process_time() - begun)
        split, size = Split("train", (map_stream(file),), facts), file.stat().st_size / count
        error = float(np.sqrt(np.square(split.pixels.astype(np.float64) - pictures).mean()))
        read = [_rate(split, threads, rounds) for threads in (1, 2)]
    return [size * 1e5 / 1e6, size / pictures[0].size, error, written, *read]


def _rate(split: Split, threads: int, rounds: int) -> float:
    """Pictures read per second, in the best round."""
    encoding.MAX_THREADS = threads
    encoding._pool.cache_clear()
    rng, best = np.random.default_rng(0), 0.0
    for _ in range(rounds):
        batches = [rng.integers(0, len(split), BATCH) for _ in range(4)]
        begun = time.perf_counter()
        for rows in batches:
            split.take(rows)
        best = max(best, 4 * BATCH / (time.perf_counter() - begun))
    return best


def main() -> None:
    """Measure every encoding on every set that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, default=Path("/usr/share/backgrounds/mate/nature"))
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    CODECS.update(OTHER)
    sets = {"emoji, 64": lambda: emoji(asked.rows)}
    if asked.photographs.is_dir():
        sets["photographs, 64"] = lambda: squares(asked.photographs, 64, 1 / 8, asked.rows)
        sets["photographs, 256"] = lambda: squares(asked.photographs, 256, 1 / 2, asked.rows)
    print(f"{encoding.cores()} cores, load {os.getloadavg()[0]:.1f}\n")
    print(f"| pictures | encoding | {' | '.join(HEADS)} |\n|---|---|{'---:|' * len(HEADS)}")
    for name, load in sets.items():
        try:
            pictures = load()
        except SetupError as error:
            print(f"| {name} | {error.message} |")
            continue
        for each in (RAW, *CODECS):
            size, share, error, *rates = measure(pictures, each, asked.rounds)
            shown = " | ".join(f"{rate:,.0f}" for rate in rates)
            print(f"| {name} | {each} | {size:,.0f} | {share:.0%} | {error:.2f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
