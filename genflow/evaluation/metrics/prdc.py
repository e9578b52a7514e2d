"""Precision, recall, density and coverage: separate measures of fidelity and variety, by nearest neighbours.

The neighbourhood of a set is the union of balls around its points; the radius is the distance to the k-th neighbour.

    precision   share of samples inside the neighbourhood of real data: fidelity
    recall      share of real points inside the neighbourhood of the samples: variety
    density     mean number of real balls that contain a sample, divided by k; 1 for real data, larger for samples
                that concentrate where real data is dense
    coverage    share of real balls that contain a sample: variety, robust against outliers among samples

Both sets have the same number n of points, because recall and coverage depend on it.

References:
    Improved Precision and Recall (Kynkäänniemi et al., 2019)             https://arxiv.org/abs/1904.06991
    Reliable Fidelity and Diversity Metrics (Naeem et al., 2020)          https://arxiv.org/abs/2002.09797
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genflow.evaluation.interval import Interval, half_sampled, halves, mean, proportion
from genflow.evaluation.metrics.base import Column, Features, Metric, Number, Reading, Row, share, with_interval

CHUNK = 1024
UNIT = (0.0, 1.0)
NAMES = ("precision", "recall", "density", "coverage")
NUMBERS = tuple(Number(name, better="larger", neighbourhood=True) for name in NAMES)


def distances2(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Squared distances of rows x (N, D) to y (M, D), in chunks of rows: (first row, (rows, M))."""
    squares = np.square(y).sum(1)
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        yield start, (np.square(part).sum(1)[:, None] + squares - 2 * part @ y.T).clip(min=0)


def radii2(x: np.ndarray, k: int) -> np.ndarray:
    """The squared distance of each row of x (N, D) to its k-th nearest other row, (N,)."""
    k = min(k, len(x) - 1)
    found = np.empty(len(x))
    for start, block in distances2(x, x):
        block[np.arange(len(block)), start + np.arange(len(block))] = -1.0  # itself first
        found[start : start + len(block)] = np.partition(block, k, axis=1)[:, k]
    return found


@dataclass(frozen=True)
class Prdc:
    """The four metrics and the number of points on either side."""

    precision: Interval
    recall: Interval
    density: Interval
    coverage: Interval
    n: int


def prdc(
    features: np.ndarray,
    reference: np.ndarray,
    k: int = 5,
    repeats: int = 50,
    seed: int = 0,
    strata: np.ndarray | None = None,
) -> Prdc:
    """The four metrics, from the first n rows of both sets, n being the smaller length.

    Args:
        features: features of samples (N, D).
        reference: features of real data (M, D).
        k: the neighbour whose distance is the radius of a ball.
        repeats: number of half-samples for the intervals.
        seed: seed of the half-samples.
        strata: (N,) the requested labels of samples; None: none were requested.
    """
    n = min(len(features), len(reference))
    features, reference = features[:n], reference[:n]
    radii = radii2(reference, k)
    inside = np.empty((n, n), bool)  # inside[i, j]: sample i is in real ball j
    for start, block in distances2(features, reference):
        inside[start : start + len(block)] = block <= radii
    per_sample = inside.sum(1)
    rows = halves(np.zeros(n) if strata is None else strata[:n], repeats, seed)

    def recall(half: np.ndarray) -> float:
        return recalled(features[half], reference, k)

    def coverage(half: np.ndarray) -> float:
        return float(inside[half].any(0).mean())

    everything = np.arange(n)
    return Prdc(
        precision=proportion(per_sample > 0),
        recall=half_sampled(recall(everything), recall, rows, n, UNIT),
        density=mean(per_sample / k),
        coverage=half_sampled(coverage(everything), coverage, rows, n, UNIT),
        n=n,
    )


def recalled(features: np.ndarray, reference: np.ndarray, k: int) -> float:
    """The share of the reference (M, D) inside the neighbourhood of features (N, D)."""
    radii = radii2(features, k)
    return float(np.mean(np.concatenate([(block <= radii).any(1) for _, block in distances2(reference, features)])))


def measure(inputs: Features) -> dict[str, Reading]:
    """`precision`, `recall`, `density` and `coverage`."""
    found = prdc(inputs.x, inputs.extractor.reference, repeats=inputs.repeats, seed=inputs.seed, strata=inputs.labels)
    return {number.name: Reading(getattr(found, number.name), found.n) for number in NUMBERS}


def _fidelity_and_variety(row: Row) -> str:
    return " / ".join(share(row["metrics"][name]["value"]) for name in ("precision", "recall"))


METRIC = Metric(
    measure, needs="features", numbers=NUMBERS, order=30,
    table=(Column("P / R", _fidelity_and_variety),),
    report=tuple(with_interval(number, f"{number.name} ↑") for number in NUMBERS),
)  # fmt: skip
