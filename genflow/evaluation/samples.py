"""Drawing samples to be measured: the same noise and the same labels for every run, in timed batches."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from genflow.data.shards import Dataset
from genflow.engine import Engine
from genflow.evaluation.features import Emit, Real
from genflow.maths.seeds import SampleRng, key

WAYS = 128  # whose straightness is measured
BATCH = 64
REPEATS, PATIENCE_S = 8, 10.0  # single samples that are timed, and seconds after which it is enough


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


def seeds(seed: int, count: int, purpose: str = "evaluate") -> list[int]:
    """The seeds of samples 0..count-1: a function of the evaluation's seed, so every run has the same noise."""
    return [key(purpose, seed, index) for index in range(count)]


def labels(data: Dataset, real: Real, count: int) -> np.ndarray:
    """The labels of the floor's rows: samples and the real rows that stand beside them have one class balance."""
    return data.splits["train"].labels[real.floor[:count]]


def draw(engine: Engine, seeds: Sequence[int], labels: np.ndarray, tell: Emit, **options: Any) -> Sample:
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
        tell(len(chosen))
    whole = [ms for ms, part in zip(took, records, strict=True) if len(part) == BATCH] or took
    return Sample(np.concatenate(records), labels, nfe, median(whole[1:] or whole))  # the first one warms up


def straightness(engine: Engine, labels: np.ndarray, seed: int) -> np.ndarray | None:
    """How far the ways from fresh noise to data bend (see `Family.straightness`), for the first `WAYS` labels."""
    n = min(WAYS, len(labels))
    rng = SampleRng(seeds(seed, n, "way"), "sample", engine.device)
    noise = rng.normal((n, *engine.family.noise_shape))
    found = engine.family.straightness(noise, torch.from_numpy(labels[:n]).to(engine.device))
    return None if found is None else found.cpu().numpy()


def milliseconds_alone(engine: Engine, label: int, **options: Any) -> float:
    """Median milliseconds of a sample that is asked for alone, filled up as every batch is (see `engine.ROWS`)."""
    took, start = [], time.perf_counter()
    for index in range(REPEATS):
        took.append(1000 * engine.draw([index], [label], **options).seconds)
        if time.perf_counter() - start > PATIENCE_S:
            break
    return median(took[1:] or took)
