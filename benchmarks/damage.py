"""What known damage to real pictures costs: the calibration of the default features.

    python -m benchmarks.damage NAME... [--rows 2000] [--out docs/damage.md]

NAME is a prepared dataset in the store, of 256 grey levels. The damaged pictures are the rows of the floor, so the
undamaged ones have a distance of one floor.
"""

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from genflow.data.shards import Dataset
from genflow.data.values import to_display
from genflow.errors import UsageError
from genflow.evaluation.features.classifier import FEATURES
from genflow.evaluation.features.extractor import load_features
from genflow.evaluation.features.multiscale import DIRECTIONS
from genflow.evaluation.metrics.frechet import Gaussian
from genflow.storage.files import write_atomically
from genflow.storage.store import Store

PARTS = ("hidden", "stem", "middle", "coarse", "spectrum")
HEAD = """<!-- Written by `python -m benchmarks.damage {arguments}`. -->
# What damage costs

The Fréchet distance of damaged real pictures, in floors: 1.0 is the distance of as many undamaged real pictures. `fd`
is the distance that every page states. The other columns are the parts of its features, each alone
(`genflow/evaluation/features/multiscale.py`): `hidden` is the last hidden layer of the classifier.

Noise, patterns and colours are in grey levels of 0 to 255. Pages whose features are named `-cnn` were measured with the
hidden layer alone. Their distances are not those of features that are named `-scales`.
"""


def levels(pictures: np.ndarray, change: np.ndarray | int) -> np.ndarray:
    """The pictures (N, H, W, C) with grey levels added."""
    return np.clip(np.round(pictures.astype(np.float32) + change), 0, 255).astype(np.uint8)


def each(pictures: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Every picture (N, H, W, C), changed by a function of Pillow."""
    grey = pictures.shape[3] == 1
    changed = [np.asarray(change(Image.fromarray(picture[..., 0] if grey else picture))) for picture in pictures]
    return np.stack(changed).reshape(pictures.shape)


def blur(radius: float) -> Callable[[Image.Image], Image.Image]:
    """Gaussian blur of a radius in pixels."""
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(radius))


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    """Compression by JPEG."""

    def change(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return change


def damages(
    pictures: np.ndarray, labels: np.ndarray, classes: int
) -> Iterator[tuple[str, list[tuple[str, np.ndarray]]]]:
    """Kinds of damage, each with its strengths in increasing order.

    Args:
        pictures: (N, H, W, C) uint8.
        labels: (N,).
        classes: number of classes.
    """
    noise = np.random.default_rng(0).normal(size=pictures.shape)
    rows, columns = np.indices(pictures.shape[1:3])[..., None] % 2 * 2 - 1
    yield "Gaussian noise", [(f"{s}", levels(pictures, s * noise)) for s in (3, 6, 13, 26)]
    yield "blur, pixels", [(f"{r}", each(pictures, blur(r))) for r in (0.3, 0.5, 0.8, 1.2)]
    yield "JPEG, quality", [(f"{q}", each(pictures, jpeg(q))) for q in (90, 75, 50, 30)]
    yield "checker pattern", [(f"± {a}", levels(pictures, a * rows * columns)) for a in (2, 4, 8, 16)]
    yield "columns of one pixel", [(f"± {a}", levels(pictures, a * (columns + 0 * rows))) for a in (2, 4, 8, 16)]
    yield "brighter", [(f"{a}", levels(pictures, a)) for a in (4, 8, 16)]
    if pictures.shape[3] == 3:
        tint = np.array([1, 0, -1])
        yield "redder and less blue", [(f"{a}", levels(pictures, a * tint)) for a in (4, 8, 16)]
    if classes > 1:
        dropped = [max(1, round(share * classes)) for share in (0.1, 0.3, 0.6)]
        yield "classes dropped", [(f"{k} of {classes}", pictures[labels >= k]) for k in dropped]


def table(store: Store, name: str, rows: int) -> tuple[list[str], bool]:
    """The table of a dataset as Markdown, and whether every damage costs more the stronger it is."""
    data = Dataset.open(store.find("datasets", name))
    if data.facts.levels != 256:
        raise UsageError(f"{name} has no pictures of 256 grey levels", "name another dataset")
    features = load_features(store, data, "classifier", lambda event, **fields: None)
    ends = np.cumsum([0, FEATURES, *[DIRECTIONS] * (len(PARTS) - 1)])
    slices = {"fd": slice(None), **{p: slice(a, b) for p, a, b in zip(PARTS, ends[:-1], ends[1:], strict=True)}}
    references = {part: Gaussian(features.reference[:, columns]) for part, columns in slices.items()}

    def distances(vectors: np.ndarray) -> dict[str, float]:
        return {part: references[part].distance(vectors[:, columns]) for part, columns in slices.items()}

    chosen = features.real.floor[:rows]
    split = data.splits["train"]
    pictures, labels = to_display(split.take(chosen), data.facts), split.labels_of(chosen)
    floor, rising = distances(features.floor[:rows]), True
    lines = [
        f"## {data.artifact.name}", "",
        f"Features: {features.name}, {features.about['accuracy']:.1%} accurate. {len(chosen):,} pictures; the floor of "
        f"fd is {floor['fd']:.3f}.", "",
        f"| damage | strength | {' | '.join(slices)} |", f"| --- | --- |{' ---: |' * len(slices)}",
    ]  # fmt: skip
    for kind, strengths in damages(pictures, labels, data.facts.classes):
        before = 0.0
        for strength, damaged in strengths:
            found = distances(features.embed(damaged)[0])
            costs = {part: found[part] / floor[part] for part in slices}
            rising &= costs["fd"] >= before
            before = costs["fd"]
            lines.append(f"| {kind} | {strength} | {' | '.join(f'{cost:.1f}' for cost in costs.values())} |")
    return lines, rising


def main() -> None:
    """Print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = [HEAD.format(arguments=" ".join(sys.argv[1:]))]
    for name in given.names:
        found, rising = table(Store(), name, given.rows)
        lines += [*found, "", f"Stronger damage costs more for every kind: {'yes' if rising else 'no'}.", ""]
    page = "\n".join(lines)
    print(page)
    if given.out:
        write_atomically(given.out, page)


if __name__ == "__main__":
    main()
