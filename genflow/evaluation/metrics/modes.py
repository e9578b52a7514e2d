"""Modes of a known density in the plane: how many the samples capture, and how many points are near one.

    captured       number of modes with a point of high quality
    high_quality   share of points of high quality
    kl             KL(q || w) in nats, q_i the share of points nearest to mode i, w_i its true share

A point has high quality if it is within three standard deviations of a mode. A mode is captured if it has such a point.
`high_quality` detects models that place points between modes, `captured` and `kl` those that miss modes. For N points
of the true density with M modes, E[kl] is about (M - 1) / (2 N): the floor.

References:
    VEEGAN (Srivastava et al., 2017), for the protocol     https://arxiv.org/abs/1705.07761
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from genflow.evaluation.interval import Interval, half_sampled, halves, proportion
from genflow.evaluation.metrics.base import ALL, Column, Metric, Row, Samples

if TYPE_CHECKING:
    from genflow.storage.store import Artifact


def measure(inputs: Samples) -> dict[str, Any] | None:
    """The section `modes`."""
    return modes(inputs.records.reshape(len(inputs.records), -1), inputs.data.artifact)


def modes(points: np.ndarray, dataset: "Artifact") -> dict[str, Any] | None:
    """{captured, of, high_quality, kl} of points (N, 2) in the units of the plane; None if the density has no modes."""
    from genflow.data.sources import densities

    source = dataset.meta.get("source", {})
    if source.get("kind") != "density" or source.get("path") not in densities.DENSITIES:
        return None
    truth = densities.density(source["path"])
    if truth.modes is None or truth.weights is None:
        return None
    return count(points, truth.modes, truth.sigma, truth.weights)


def count(points: np.ndarray, centres: np.ndarray, sigma: float, weights: np.ndarray) -> dict[str, Any]:
    """The same for given modes: standard deviation sigma, centres (M, 2) and weights (M,) that sum to 1."""
    distance = np.linalg.norm(points[:, None].astype(np.float64) - centres, axis=2)
    nearest = distance.argmin(1)
    good = distance.min(1) <= 3 * sigma
    share, n = proportion(good), len(points)
    return {
        "captured": len(np.unique(nearest[good])),
        "of": len(centres),
        "high_quality": {**vars(share), "n": n},
        "kl": {**vars(_divergence(nearest, weights)), "n": n, "floor": (len(centres) - 1) / (2 * n)},
    }


def _divergence(nearest: np.ndarray, weights: np.ndarray) -> Interval:
    """KL(q || weights) with its interval; `nearest` (N,) is the mode nearest to each point."""
    n = len(nearest)

    def statistic(rows: np.ndarray) -> float:
        share = np.bincount(nearest[rows], minlength=len(weights)) / len(rows)
        here = share > 0
        return float((share[here] * np.log(share[here] / weights[here])).sum())

    return half_sampled(statistic(np.arange(n)), statistic, halves(np.zeros(n), 50), n, (0.0, math.inf))


def _found(row: Row) -> str:
    found = row["modes"]
    near = ""
    if "high_quality" in found:
        near = f"<small>{100 * found['high_quality']['value']:.0f} % of points near one</small>"
    return f"{found['captured']} of {found['of']}{near}"


def _by_real_rows(row: Row) -> str:
    return str(row["modes"].get("ceiling", row["modes"]["of"]))


METRIC = Metric(
    measure, needs="samples", section="modes", records=ALL, order=90,
    applies=lambda data, options: data.facts.is_points,
    report=(Column("modes ↑", _found, _by_real_rows, lambda row: bool(row.get("modes")), order=25),),  # for stacks, too
)  # fmt: skip
