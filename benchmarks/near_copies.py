"""Measure the limits of `prepare` for near copies: false ones among different pictures, and the share that is found.

    python -m benchmarks.near_copies [--rows 2000]

Prints a Markdown table of the data sets that are installed: digits, Fashion-MNIST, and emoji on one background. A false
near copy is a picture that counts as a copy of another picture of the set. A copy is made of each picture in four ways.
"""

import argparse
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from genflow.data.checks import NEAR_BITS, NEAR_RMS
from genflow.data.image_statistics import perceptual_hash
from genflow.data.sources.base import BadRecord, ImageSpec
from genflow.data.sources.find import find
from genflow.errors import SetupError
from genflow.recipe.schema import Data

SOURCES = {  # the shape, and the largest grey level
    "digits": (ImageSpec(32, 1, levels=17), 16),
    "fashion": (ImageSpec(28, 1), 255),
    "emoji": (ImageSpec(64, 3), 255),
}


def pictures(name: str, rows: int) -> np.ndarray:
    """Different pictures of a source, (N, H, W, C) uint8 from 0 to 255."""
    spec, most = SOURCES[name]
    source = find(Data(source=name))
    chosen = np.arange(source.splits()["train"]) if name == "emoji" else np.arange(min(rows, source.splits()["train"]))
    records = [record for record in source.part("train", chosen).records(spec) if not isinstance(record, BadRecord)]
    if name == "emoji":  # one picture of each subject
        records = [record for record in records if record.id.endswith("/white")][:rows]
    values = np.stack([record.value for record in records]).astype(np.float64) * 255 / most
    return np.unique(np.rint(values).astype(np.uint8), axis=0)


def saved_as_jpeg(picture: np.ndarray) -> np.ndarray:
    """A picture that is saved as JPEG of quality 75 and read again."""
    file = io.BytesIO()
    Image.fromarray(picture.squeeze()).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file)).reshape(picture.shape)


def cut(picture: np.ndarray) -> np.ndarray:
    """A picture without 2 % of its side at each edge, at least one pixel, and resized."""
    edge = max(1, round(0.02 * len(picture)))
    side = len(picture)
    inner = Image.fromarray(picture.squeeze()).crop((edge, edge, side - edge, side - edge))
    return np.asarray(inner.resize((side, side), Image.Resampling.BICUBIC)).reshape(picture.shape)


def noisy(picture: np.ndarray) -> np.ndarray:
    """A picture with noise of five grey levels."""
    return np.clip(picture + np.random.default_rng(0).normal(0, 5, picture.shape), 0, 255).astype(np.uint8)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG of quality 75": saved_as_jpeg,
    "noise of 5 levels": noisy,
    "8 % brighter": lambda picture: np.clip(picture * 1.08, 0, 255).astype(np.uint8),
    "2 % cut off": cut,
}


def is_near(one: np.ndarray, other: np.ndarray, deviation: float) -> np.ndarray:
    """Whether pairs of pictures are near copies, (N,) bool."""
    bits = np.bitwise_count(perceptual_hash(one) ^ perceptual_hash(other))
    rms = np.sqrt(((one.astype(np.float32) - other) ** 2).mean((1, 2, 3)))
    return (bits <= NEAR_BITS) & (rms < NEAR_RMS * deviation)


def measure(values: np.ndarray) -> list[str]:
    """The row of the table: the number of pictures, the false near copies, and the share found of each kind."""
    deviation, hashes = float(values.std()), perceptual_hash(values)
    distances = [np.bitwise_count(hashes ^ own) for own in hashes]
    for own, distance in enumerate(distances):
        distance[own] = 64  # the picture itself
    nearest = np.array([distance.argmin() for distance in distances])
    false = int(is_near(values, values[nearest], deviation).sum())
    shares = [is_near(values, np.stack(list(map(copy, values))), deviation).mean() for copy in COPIES.values()]
    return [f"{len(values):,}", str(false), *(f"{share:.1%}" for share in shares)]


def main() -> None:
    """Measure every data set that is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    rows = parser.parse_args().rows
    print(f"| data | pictures | false | {' | '.join(COPIES)} |\n|{'---|' * (3 + len(COPIES))}")
    for name in SOURCES:
        try:
            print(f"| {name} | {' | '.join(measure(pictures(name, rows)))} |", flush=True)
        except SetupError as error:
            print(f"| {name} | {error.message} |")


if __name__ == "__main__":
    main()
