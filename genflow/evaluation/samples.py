"""Drawing samples to be measured: the same noise and the same labels for every run, in timed batches.

Many samples are drawn in shares of 512, here or on workers, and a share is reduced where it is drawn: to features and
classes, which is all that most metrics ask for. What a share comes to is a function of its seeds and labels alone, so
no figure depends on how many workers there were; and few pictures are kept, so memory does not grow with their size.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from genflow.data.shards import Dataset
from genflow.evaluation.features.extractor import DataSplits, Embed, Emit
from genflow.maths.rng import key
from genflow.sampling.engine import Engine
from genflow.system.peak_memory import peak

BATCH = 64
SHARE = 8 * BATCH  # samples that are drawn and reduced as one
REPEATS, PATIENCE_S = 8, 0.25  # single samples that are timed, and seconds after which three are enough


@dataclass(frozen=True)
class Sample:
    """Drawn records, their labels, what they took.

    Args:
        records: as a split has them, (N, H, W, C) or (N, 1, 1, 2).
        labels: (N,).
        nfe: network evaluations each.
        ms: median milliseconds a sample, in batches of 64.
    """

    records: np.ndarray
    labels: np.ndarray
    nfe: int
    ms: float


@dataclass(frozen=True)
class Share:
    """Samples that are drawn and reduced as one.

    Args:
        seeds: (N,).
        labels: (N,) class numbers; `classes` for none.
        keep: how many of the records to keep, the first ones.
    """

    seeds: Sequence[int]
    labels: np.ndarray
    keep: int


@dataclass(frozen=True)
class DrawnFeatures:
    """Samples of which most are kept as features only.

    Args:
        records: of the first K, as `Sample` has them.
        features: (N, D).
        classes: (N,) what the judge's classifier sees; None if it cannot tell.
        labels: (N,).
        nfe: network evaluations each.
        ms: median milliseconds a sample of those that were drawn here, in batches of 64.
        memory_mb: the peak while drawing here.
    """

    records: np.ndarray
    features: np.ndarray
    classes: np.ndarray | None
    labels: np.ndarray
    nfe: int
    ms: float
    memory_mb: float


Executor = Callable[[Sequence[Share]], Iterable[DrawnFeatures]]
"""Draws shares elsewhere and gives them back in their order."""


def seeds(seed: int, count: int, purpose: str = "evaluate") -> list[int]:
    """The seeds of samples 0..count-1: a function of the evaluation's seed, so every run has the same noise."""
    return [key(purpose, seed, index) for index in range(count)]


def labels(data: Dataset, real: DataSplits, count: int) -> np.ndarray:
    """The labels of the floor's rows: samples and the real rows that stand beside them have one class balance."""
    return data.splits["train"].labels[real.floor[:count]]


def draw(engine: Engine, seeds: Sequence[int], labels: np.ndarray, progress: Emit, **options: Any) -> Sample:
    """Draw one sample for each seed, in batches of 64 that are timed one by one.

    Args:
        engine: the run's.
        seeds: (N,).
        labels: (N,) class numbers; `classes` for none.
        tell: called with the number of samples of each batch.
        options: of the family's `sample`.

    Raises:
        UsageError: the family refuses the options.
    """
    records, took, nfe = [], [], 0
    for start in range(0, len(seeds), BATCH):
        chosen = labels[start : start + BATCH]
        drawn = engine.draw(seeds[start : start + BATCH], chosen.tolist(), batch=BATCH, **options)
        records.append(drawn.images)
        nfe = drawn.nfe
        took.append(1000 * drawn.seconds / len(chosen))
        progress(len(chosen))
    whole = [ms for ms, part in zip(took, records, strict=True) if len(part) == BATCH] or took
    return Sample(np.concatenate(records), labels, nfe, median(whole[1:] or whole))  # the first one warms up


def draw_features(
    engine: Engine, embed: Embed, seeds: Sequence[int], labels: np.ndarray, keep: int, progress: Emit,
    executor: Executor | None = None,
) -> DrawnFeatures:  # fmt: skip
    """Draw one sample for each seed and keep its features; the first share always here, where it is timed.

    Args:
        engine: the run's.
        embed: the judge's.
        seeds: (N,).
        labels: (N,).
        keep: how many records to keep, the first ones.
        tell: called with the number of samples that were drawn.
        carry: draws the other shares; None: here, one after the other.
    """
    shares = [
        Share(seeds[start : start + SHARE], labels[start : start + SHARE], max(0, keep - start))
        for start in range(0, len(seeds), SHARE)
    ]
    parts = [draw_share(engine, embed, shares[0], progress)]
    if executor is None:
        parts += [draw_share(engine, embed, share, progress) for share in shares[1:]]
        here = parts
    else:
        here = parts[:1]
        for part in executor(shares[1:]) if shares[1:] else ():
            parts.append(part)
            progress(len(part.labels))
    seen = [part.classes for part in parts if part.classes is not None]
    return DrawnFeatures(
        np.concatenate([part.records for part in parts]),
        np.concatenate([part.features for part in parts]),
        np.concatenate(seen) if seen else None,
        labels,
        parts[0].nfe,
        median(part.ms for part in here if len(part.labels) == SHARE or len(here) == 1),
        max(part.memory_mb for part in here),
    )


def draw_share(engine: Engine, embed: Embed, share: Share, progress: Emit) -> DrawnFeatures:
    """Draw a share, and keep what is asked of it."""
    with peak(engine.device) as memory:
        drawn = draw(engine, share.seeds, share.labels, progress)
    features, classes = embed(drawn.records)
    return DrawnFeatures(drawn.records[: share.keep], features, classes, share.labels, drawn.nfe, drawn.ms, memory.mb)


def single_sample_ms(engine: Engine, label: int, **options: Any) -> float:
    """Median milliseconds of a sample that is asked for alone, filled up as every batch is (see `engine.ROWS`)."""
    took, start = [], time.perf_counter()
    for index in range(REPEATS):
        took.append(1000 * engine.draw([index], [label], **options).seconds)
        if index >= 2 and time.perf_counter() - start > PATIENCE_S:
            break
    return median(took[1:] or took)
