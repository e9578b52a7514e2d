"""Pictures of a run's samples: grids, sampling paths from noise to data, and interpolations between samples.

    grid.png      samples of the seeds that all runs share, one class per row; of an autoencoder the reconstructions
                  of real.png
    real.png      real rows in the same layout
    nearest.png   the samples that are most unusually close to one training picture, above those pictures
    way.png       sampling paths, from noise on the left to the sample on the right. Two rows per sample: x_t (scaled
                  to the range of a picture), and the prediction of x_0. Only for families with steps, not for points
    between.png   interpolations between two samples through the interpolated noise; not for points
    prompts.png   samples of captions of held-out rows, for a run of captions (see `prompt_pictures`)

An autoencoder has neither nearest.png nor between.png, because its samples are reconstructions of training pictures.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from genflow.data import preview
from genflow.data.shards import Dataset
from genflow.data.values import from_x
from genflow.evaluation import prompt_pictures, samples
from genflow.evaluation.features.extractor import FeatureReference
from genflow.evaluation.metrics.memorization import standouts
from genflow.sampling.engine import Engine
from genflow.specs import DataSpec

COLUMNS, CLASSES = 8, 10
PATHS = 3  # number of sampling paths, and of interpolated pairs


@dataclass(frozen=True)
class Pictures:
    """Files of an evaluation.

    Args:
        files: contents by file name.
        prompts: for a run of captions, those of the pictures of a file, by its name without .png: of grid.png from left
            to right in each row, of nearest.png and prompts.png one for each column; and whether the captions of
            prompts.png are unseen. None for other runs.
    """

    files: dict[str, bytes]
    prompts: dict[str, Any] | None = None


def render_all(
    engine: Engine, data: Dataset, extractor: FeatureReference, drawn: samples.DrawnFeatures, seed: int
) -> Pictures:
    """The pictures as PNG.

    Args:
        engine: the engine of the run.
        data: the dataset that it was trained on.
        extractor: selects the real rows that are shown.
        drawn: the measured samples; nearest.png considers the first 200.
        seed: the seed of the evaluation.
    """
    facts, split, records = data.facts, data.splits[extractor.real.split], drawn.records
    if facts.is_points:
        truth = split.take(extractor.real.reference)
        real = preview.render(truth[: len(records)], facts, limit=_limit(truth))
        return Pictures({"grid.png": grid(engine, data, extractor, records, seed), "real.png": real})
    lines = min(facts.classes, CLASSES) or COLUMNS
    real = preview.render(split.take(_real(data, extractor, lines)), facts, COLUMNS)
    if engine.family.is_autoencoder:
        return Pictures({"grid.png": grid(engine, data, extractor, records, seed), "real.png": real})
    similar, chosen = standouts(records, data, COLUMNS)
    # one row of samples, one of their training pictures
    pairs = similar.reshape(-1, 2, *similar.shape[1:]).swapaxes(0, 1).reshape(similar.shape)
    found = {
        "grid.png": grid(engine, data, extractor, records, seed),
        "real.png": real,
        "nearest.png": preview.render(pairs, facts, len(similar) // 2),
        "between.png": preview.render(interpolations(engine, seed), facts, COLUMNS),
    }
    if paths := sampling_paths(engine, seed):
        found["way.png"] = preview.render(paths[0], facts, paths[1])
    if drawn.prompts is None:
        return Pictures(found)
    prompts: dict[str, Any] = {
        "grid": _prompts(data, extractor, lines), "nearest": [drawn.prompts[place] for place in chosen]
    }  # fmt: skip
    if prompted := prompt_pictures.draw(engine, data, extractor, seed):
        found |= prompted.files(facts)
        prompts |= {"prompts": prompted.captions, "unseen": prompted.unseen}
    return Pictures(found, prompts)


def grid(engine: Engine, data: Dataset, extractor: FeatureReference, records: np.ndarray, seed: int) -> bytes:
    """Only grid.png; the arguments are those of `render_all`."""
    facts = data.facts
    if facts.is_points:
        truth = data.splits[extractor.real.split].take(extractor.real.reference)
        return preview.render(records, facts, limit=_limit(truth))
    lines = min(facts.classes, CLASSES) or COLUMNS
    if engine.family.is_autoencoder:
        real = data.splits[extractor.real.split].take(_real(data, extractor, lines))
        return preview.render(engine.reconstruct(real), facts, COLUMNS)
    count = lines * COLUMNS
    labels = np.repeat(shown_classes(facts, lines), COLUMNS) if facts.classes else np.zeros(count, np.int64)
    prompts = _prompts(data, extractor, lines) if engine.prompts else None
    images = engine.draw(samples.seeds(seed, count, "grid"), labels.tolist(), prompts=prompts).images
    return preview.render(images, facts, COLUMNS)


def _limit(truth: np.ndarray) -> float:
    return 1.1 * float(np.abs(truth).max())


def _real(data: Dataset, extractor: FeatureReference, lines: int) -> np.ndarray:
    rows = extractor.real.reference
    if not data.facts.classes:
        return rows[np.resize(np.arange(len(rows)), lines * COLUMNS)]
    labels = data.splits[extractor.real.split].labels_of(rows)
    of_class = [rows[labels == label] for label in shown_classes(data.facts, lines)]
    return np.concatenate([np.resize(own if len(own) else rows, COLUMNS) for own in of_class])


def _prompts(data: Dataset, extractor: FeatureReference, lines: int) -> list[str]:
    """The captions of the pictures in real.png."""
    return samples.captions_of(data.splits[extractor.real.split], _real(data, extractor, lines))


def shown_classes(facts: DataSpec, lines: int) -> np.ndarray:
    """The classes of the lines of a grid, (lines,): all of a few, and of many some from the first to the last."""
    return np.linspace(0, facts.classes - 1, lines).round().astype(int)


def _labels(engine: Engine) -> list[int]:
    """One class per path or pair, spread evenly over the classes."""
    classes = engine.facts.classes
    return [index * classes // PATHS for index in range(PATHS)]


def sampling_paths(engine: Engine, seed: int) -> tuple[np.ndarray, int] | None:
    """Sampling paths of three seeds, (2 PATHS columns, H, W, C), and the number of columns; None for a family without
    steps."""
    at: list[np.ndarray] = []
    guessed: list[np.ndarray] = []

    def watch(x: Tensor, guess: Tensor) -> None:
        at.append(from_x(x[:PATHS], engine.facts))
        guessed.append(from_x(guess[:PATHS], engine.facts))

    prompts = engine.prompts.examples(PATHS) if engine.prompts else None
    drawn = engine.draw(samples.seeds(seed, PATHS, "way shown"), _labels(engine), prompts=prompts, watch=watch).images
    if not at:
        return None
    chosen = np.unique(np.linspace(0, len(at) - 1, min(COLUMNS - 1, len(at))).round().astype(int))
    lines = [[*(seen[i] for i in chosen), drawn] for seen in (at, guessed)]  # each entry (PATHS, H, W, C)
    stacked = np.stack([np.stack(line, 1) for line in lines], 1)  # (PATHS, 2, columns, H, W, C)
    return stacked.reshape(-1, *stacked.shape[3:]), len(chosen) + 1


def interpolations(engine: Engine, seed: int) -> np.ndarray:
    """Rows of 8 samples, (8 PATHS, H, W, C); each row interpolates between the noise of two seeds."""
    ends = [samples.seeds(seed, PATHS, f"between {side}") for side in ("a", "b")]
    shares = np.linspace(0, 1, COLUMNS).tolist()
    toward = [(end, share) for end in ends[1] for share in shares]
    seeds = [end for end in ends[0] for _ in shares]
    labels = [label for label in _labels(engine) for _ in shares]
    prompts = [words for words in engine.prompts.examples(PATHS) for _ in shares] if engine.prompts else None
    return engine.draw(seeds, labels, toward=toward, prompts=prompts).images
