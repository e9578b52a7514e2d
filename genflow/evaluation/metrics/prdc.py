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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from genflow.evaluation.interval import Interval, from_halves, halves, mean, proportion
from genflow.evaluation.metrics.base import Column, Features, Metric, Number, Reading, Row, share, with_interval

CHUNK = 256  # rows whose distances to some thousand others fit into a core's share of the cache
WIDE = 8  # times k: the nearest neighbours among which the k-th within half of the rows is looked for
UNIT = (0.0, 1.0)
NAMES = ("precision", "recall", "density", "coverage")
NUMBERS = tuple(Number(name, better="larger", neighbourhood=True) for name in NAMES)


def distances2(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Squared distances of rows x (N, D) to y (M, D), in chunks of rows: (first row, (rows, M)).

    Both squared lengths are two more columns of the product -2 x . y, so that no pass over (N, M) adds them.
    """
    left = np.column_stack([x, np.square(x).sum(1), np.ones(len(x))])
    right = np.column_stack([-2 * y, np.ones(len(y)), np.square(y).sum(1)]).T.copy()
    for start in range(0, len(x), CHUNK):
        block = left[start : start + CHUNK] @ right
        yield start, np.maximum(block, 0, out=block)


def radii2(x: np.ndarray, k: int) -> np.ndarray:
    """The squared distance of each row of x (N, D) to its k-th nearest other row, (N,)."""
    k = min(k, len(x) - 1)
    found = np.empty(len(x))
    for start, block in distances2(x, x):
        block[np.arange(len(block)), start + np.arange(len(block))] = -1.0  # itself first
        found[start : start + len(block)] = np.partition(block, k, axis=1)[:, k]
    return found


def radii2_of_sets(x: np.ndarray, k: int, sets: Sequence[np.ndarray]) -> np.ndarray:
    """`radii2` of every set of rows of x (N, D), as (len(sets), N); -1 for the rows that are not in a set.

    The k-th neighbour within half of the rows is nearly always one of the `WIDE` * k nearest of all.
    """
    near, apart = _nearest(x, min(WIDE * k, len(x) - 1))
    found = np.full((len(sets), len(x)), -1.0)
    for radii, rows in zip(found, sets, strict=True):
        if not (kth := min(k, len(rows) - 1)):
            radii[rows] = 0.0  # a point alone has no neighbour
            continue
        here = np.zeros(len(x), bool)
        here[rows] = True
        place = (here[near[rows]].cumsum(1) < kth).sum(1)  # of the k-th neighbour, among the nearest
        far = place == near.shape[1]
        radii[rows] = apart[rows, np.where(far, 0, place)]
        for row in rows[far]:
            radii[row] = np.partition(np.square(x[rows] - x[row]).sum(1), kth)[kth]
    return found


def _nearest(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row of x (N, D) the nearest other rows and their squared distances, nearest first: (N, count) each."""
    near, apart = np.empty((len(x), count), int), np.empty((len(x), count))
    for start, block in distances2(x, x):
        rows = np.arange(len(block))
        block[rows, start + rows] = np.inf  # itself last
        found = np.argpartition(block, max(0, count - 1), axis=1)[:, :count]
        distances = np.take_along_axis(block, found, 1)
        order = distances.argsort(1)
        near[start + rows] = np.take_along_axis(found, order, 1)
        apart[start + rows] = np.take_along_axis(distances, order, 1)
    return near, apart


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
    halved = halves(np.zeros(n) if strata is None else strata[:n], repeats, seed)
    sets = [np.arange(n), *halved]
    real_radii, radii = radii2(reference, k), radii2_of_sets(features, k, sets)
    per_sample = np.empty(n, int)
    recalled = np.zeros((len(sets), n), bool)  # by set of samples and real point
    covered = np.zeros((len(sets), n), bool)  # by set of samples and real ball
    for start, block in distances2(features, reference):
        rows = slice(start, start + len(block))
        inside = block <= real_radii
        per_sample[rows] = inside.sum(1)
        sample, ball = np.nonzero(inside)
        owner, point = np.nonzero(block <= radii[:, rows].max(0)[:, None])
        apart = block[owner, point]
        for index, own in enumerate(radii[:, rows]):
            covered[index, ball[own[sample] >= 0]] = True
            recalled[index, point[apart <= own[owner]]] = True
    return Prdc(
        precision=proportion(per_sample > 0),
        recall=_from_halves(recalled, halved),
        density=mean(per_sample / k),
        coverage=_from_halves(covered, halved),
        n=n,
    )


def _from_halves(found: np.ndarray, halved: np.ndarray) -> Interval:
    """The share of found points (1 + R, N): of the set of all samples, with an interval from the R halves."""
    whole, *parts = found.mean(1)
    return from_halves(float(whole), parts, halved.shape[1], found.shape[1], UNIT)


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
