"""Interpolate between two images, seeds or prompts for `genflow sample --interpolate`, one interpolation in each row.

A family with an encoder interpolates between real images: a row starts and ends with the images themselves, and decodes
the interpolated codes between them. A family without an encoder interpolates between the noises of two seeds, and a row
starts and ends with the samples of these seeds. Between two prompts the noise is that of one seed, and a row starts and
ends with the samples of the prompts.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genflow import build
from genflow.data import images
from genflow.data.shards import Dataset
from genflow.errors import DataError, UsageError
from genflow.families.base import has_encoder
from genflow.maths.rng import key
from genflow.maths.slerp import slerp
from genflow.sampling.engine import Engine, SampleBatch, labels_for
from genflow.specs import DataSpec
from genflow.storage.store import Artifact, Store
from genflow.system.documents import Json

COLUMNS = 8


@dataclass(frozen=True)
class Walk:
    """Rows of interpolated pictures.

    Args:
        drawn: the pictures, row by row.
        rows, columns: their number.
        ends: the names of the pictures at the ends of each row, or their prompts; None: samples of two seeds.
        between: what the ends are: seeds, pictures or prompts.
    """

    drawn: SampleBatch
    rows: int
    columns: int
    ends: list[list[str]] | None
    between: str

    @property
    def index(self) -> dict[str, list[int]]:
        """The row and the column of each picture."""
        numbers = range(self.rows * self.columns)
        return {"row": [i // self.columns for i in numbers], "column": [i % self.columns for i in numbers]}

    @property
    def layout(self) -> Json:
        """What a `genflow.sample/1` document says of it."""
        return {"rows": self.rows, "columns": self.columns, "between": self.between, "ends": self.ends}


@dataclass(frozen=True)
class EndImages:
    """Real images to interpolate between.

    Args:
        images: (R, 2, H, W, C) records, the first and the last image of each row.
        labels: (R,) labels for encoding and decoding; `classes` for no label.
        names: (R, 2) ids or paths of the images.
    """

    images: np.ndarray
    labels: np.ndarray
    names: list[list[str]]


def layout(n: int | None, own: bool) -> tuple[int, int]:
    """Rows and columns of n images; None: 8 rows, or one row between the user's `own` two images.

    Raises:
        UsageError: n images do not fill whole rows.
    """
    if own and (n is None or n >= 3):
        return 1, n or COLUMNS
    n = COLUMNS * COLUMNS if n is None else n
    if n < 3 or (n > COLUMNS and n % COLUMNS):
        near = max(1, round(n / COLUMNS)) * COLUMNS
        hint = f"use -n {near}, or 3 to {COLUMNS} for one row"
        raise UsageError(f"-n {n} images do not fill rows of {COLUMNS}", hint)
    return max(1, n // COLUMNS), min(n, COLUMNS)


def prompt_columns(n: int | None, pairs: int) -> int:
    """Columns of n images between `pairs` pairs of prompts, a row for each pair; None: 8 columns.

    Raises:
        UsageError: n images do not fill the rows.
    """
    if n is not None and (n % pairs or n < 3 * pairs):
        raise UsageError(f"-n {n} images do not fill {pairs} row(s) of at least 3", f"use -n {COLUMNS * pairs}")
    return COLUMNS if n is None else n // pairs


def held_out(
    store: Store, dataset: str, rows: int, seed: int, labels: Sequence[int] | None, facts: DataSpec
) -> EndImages:
    """Pairs of images from the reference split; the pair of a row is a function of its seed, seed + row.

    Args:
        store: holds the dataset.
        dataset: its id.
        rows: R.
        seed: of the first row.
        labels: the class of both images of each row; None: any two images, and no label.
        facts: of the data.

    Raises:
        DataError: the dataset is missing, or has fewer than two images of a class.
    """
    artifact = store.get("datasets", dataset)
    if artifact is None:
        raise DataError(
            f"the dataset {dataset} that this run was trained on is not in the store",
            "prepare it again, or use your own images: --between a.png b.png",
        )
    data = Dataset.open(artifact)
    split = data.splits[data.reference]
    chosen = []
    for row in range(rows):
        own = np.arange(len(split)) if labels is None else np.flatnonzero(split.labels == labels[row])
        if len(own) < 2:
            what = "" if labels is None else f" of class {facts.class_names[labels[row]]}"
            raise DataError(f"{artifact.name} has {len(own)} images{what}; an interpolation needs two",
                            "use --label with another class, or --label none")  # fmt: skip
        chosen.append(np.random.default_rng(key(seed + row, "pair")).choice(own, 2, replace=False))
    ids = split.ids
    kept = np.full(rows, facts.classes) if labels is None else np.asarray(labels, np.int64)
    names = [[ids[i] for i in pair] for pair in chosen]
    return EndImages(np.stack([split.take(pair) for pair in chosen]), kept, names)


def from_files(paths: Sequence[Path], labels: Sequence[int] | None, facts: DataSpec) -> EndImages:
    """Two images of the user as one row, converted to the dataset's size, colours and grey levels.

    Raises:
        DataError: an image cannot be read; the message says why.
        UsageError: the data is not images.
    """
    if facts.is_points:
        raise UsageError("--between needs images, and this run's data is points of the plane", "omit --between")
    found = []
    for path in paths:
        try:
            with images.strict_pillow_warnings(), images.open_image_file(str(path)) as file:
                found.append(images.decode_for_dataset(file, facts))
        except images.UnreadableImage as error:
            raise DataError(f"--between {path}: {error}", "name two PNG, JPEG, WebP, BMP, TIFF or GIF files") from error
    return from_records(np.stack(found), labels, facts, [str(path) for path in paths])


def from_records(
    records: np.ndarray, labels: Sequence[int] | None, facts: DataSpec, names: Sequence[str] = ("", "")
) -> EndImages:
    """Two records (2, H, W, C) as one row."""
    label = np.array([facts.classes if labels is None else labels[0]])
    return EndImages(records[None], label, [list(names)])


def walk_pictures(engine: Engine, ends: EndImages, columns: int, seed: int) -> SampleBatch:
    """Rows of the first image, `columns` - 2 decoded interpolations of the two codes, and the second image."""
    rows, labels = len(ends.labels), ends.labels.tolist()
    seeds = ([key(seed + row, "end", side) for row in range(rows)] for side in (0, 1))
    a, b = (torch.from_numpy(engine.encode(ends.images[:, i], labels, own)) for i, own in enumerate(seeds))
    inner = columns - 2
    shares = torch.linspace(0, 1, inner, dtype=torch.float64) if inner > 1 else torch.tensor([0.5])
    code = slerp(a.repeat_interleave(inner, 0), b.repeat_interleave(inner, 0), shares.repeat(rows))
    every = np.repeat(ends.labels, inner).tolist()
    drawn = engine.decode(code.numpy(), every, [seed + row for row in range(rows) for _ in range(inner)])
    shaped = drawn.images.reshape(rows, inner, *drawn.images.shape[1:])
    images = np.concatenate([ends.images[:, :1], shaped, ends.images[:, 1:]], 1)
    return SampleBatch(images.reshape(-1, *images.shape[2:]), ends.labels.repeat(columns), drawn.nfe, drawn.seconds)


def walk_noise(
    engine: Engine, rows: int, columns: int, seed: int, labels: Sequence[int] | None, options: dict[str, object],
    prompts: Sequence[str] | None = None, negative: str = "",
) -> SampleBatch:  # fmt: skip
    """Rows from the sample of seed `seed + 2 row` to that of the next seed, by interpolating their noises.

    Args:
        engine: of the run.
        rows: R.
        columns: pictures in a row.
        seed: of the first row.
        labels: (R,) one for each row; None: no labels.
        options: of the sampler.
        prompts: (R,) one for each row, for a run that reads captions.
        negative: as in `Engine.draw`.
    """
    toward = [(seed + 2 * row + 1, share) for row in range(rows) for share in _shares(columns)]
    seeds = [seed + 2 * row for row in range(rows) for _ in range(columns)]
    every = None if labels is None else [label for label in labels for _ in range(columns)]
    words = None if prompts is None else [prompt for prompt in prompts for _ in range(columns)]
    return engine.draw(seeds, every, prompts=words, negative=negative, toward=toward, **options)  # type: ignore[arg-type]


def draw(
    store: Store, run: Artifact, engine: Engine, n: int | None, seed: int, options: dict[str, Any], label: str,
    between: Sequence[Path] | np.ndarray | None = None, *, prompts: Sequence[str] = (), negative: str = "",
) -> Walk:  # fmt: skip
    """Interpolate between prompts if there are several, else between pictures if the family has an encoder.

    Other families, and a single prompt, are interpolated between the noises of seeds.

    Args:
        store: holds the dataset of the run, whose held-out pictures are the ends.
        run: that the engine draws from.
        engine: the engine of the run.
        n: number of pictures, see `layout`.
        seed: of the first row.
        options: of the sampler; only for a family without an encoder.
        label: as in `labels_for`.
        between: two files, or two records (2, H, W, C), to interpolate between; None: see above.
        prompts: of a run that reads captions: one row from each to the next; a single one is that of every picture.
        negative: as in `Engine.draw`.

    Raises:
        UsageError: the family cannot do that, or n does not fill rows.
        DataError: a picture cannot be read, or the dataset is not in the store.
    """
    facts, family = engine.facts, engine.family
    if len(prompts) > 1 and between is None:
        columns = prompt_columns(n, len(prompts) - 1)
        chosen = build.sample_options(family, {**engine.options, **options})
        drawn = walk_prompts(engine, prompts, columns, seed, negative, chosen)
        ends = [list(pair) for pair in itertools.pairwise(prompts)]
        return Walk(drawn, len(prompts) - 1, columns, ends, "prompts")
    rows, columns = layout(n, between is not None)
    encodes = has_encoder(type(family))
    if between is not None and not encodes:
        raise UsageError(
            f"--between needs an encoder, and {family.title} has none", "--interpolate interpolates between two seeds"
        )
    if between is not None and prompts:
        raise UsageError("--prompt cannot be combined with --between", "remove --between, or remove --prompt")
    encodes = encodes and not prompts
    if encodes and negative:
        raise UsageError("--negative cannot be combined with --interpolate between pictures", "add --prompt")
    if encodes and options:
        raise UsageError(
            f"{next(iter(options))} cannot be combined with --interpolate: decoding with {family.title} has no options",
            f"remove {next(iter(options))}",
        )
    if not encodes:
        chosen = build.sample_options(family, {**engine.options, **options})
        labels = None if engine.prompts else labels_for(label, rows, facts)
        words = (list(prompts) * rows or engine.prompts.examples(rows)) if engine.prompts else None
        drawn = walk_noise(engine, rows, columns, seed, labels, chosen, words, negative)
        return Walk(drawn, rows, columns, None, "seeds")
    if between is None:
        pictures = held_out(store, run.meta["dataset"], rows, seed, labels_for(label, rows, facts), facts)
    else:
        labels = None if label == "all" else labels_for(label, rows, facts)
        if isinstance(between, np.ndarray):
            pictures = from_records(between, labels, facts)
        else:
            pictures = from_files(between, labels, facts)
    return Walk(walk_pictures(engine, pictures, columns, seed), rows, columns, pictures.names, "pictures")


def walk_prompts(
    engine: Engine, prompts: Sequence[str], columns: int, seed: int, negative: str, options: dict[str, object]
) -> SampleBatch:
    """A row from each prompt to the next one, with the noise of one seed."""
    pairs = list(zip(prompts, prompts[1:], strict=False))
    words = [first for first, _ in pairs for _ in range(columns)]
    toward = [(last, share) for _, last in pairs for share in _shares(columns)]
    seeds = [seed] * len(words)
    drawn = engine.draw(seeds, prompts=words, negative=negative, toward_prompts=toward, **options)  # type: ignore[arg-type]
    return replace(drawn, prompts=())  # most pictures are between two prompts


def _shares(columns: int) -> list[float]:
    return torch.linspace(0, 1, columns, dtype=torch.float64).tolist() if columns > 1 else [0.5]
