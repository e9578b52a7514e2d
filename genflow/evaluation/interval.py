"""95 % intervals for the variation of a metric between sets of N samples of the same model: half-sampling.

A statistic T of N samples is computed on R random halves, drawn *without* replacement. For a mean, a half of size
m = N/2 has conditional variance (1/m)(1 - m/N) s^2 = s^2 / N, which is exactly that of the whole sample. To first
order, the standard deviation of T over halves therefore equals that over new sets of N samples:

    low, high = T -+ t_{R-1, 0.975} sqrt(m / (N - m)) std(T over halves)

The usual bootstrap repeats samples, and a repeated point is its own nearest neighbour: this increases the Fréchet
distance and shrinks every neighbourhood. Halves repeat no sample, and the bias of a statistic of fewer samples does not
affect a standard deviation. Close to the floor, where the Fréchet distance is quadratic in the noise, the interval is
too wide rather than too narrow.

The reference and the requested labels are the same for every run and are held fixed. A half therefore contains half of
the samples of each label.

References:
    The Jackknife and Bootstrap (Shao, Tu, 1995), section 2.3, for delete-d and half samples
    Probable inference (Wilson, 1927), for proportions
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genflow.evaluation.results import MetricValue

Z = 1.959963984540054  # the standard normal's 97.5 % quantile


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def metric(self, n: int, features: str, floor: float | None) -> MetricValue:
        """The metric as in the JSON document; `floor` is the value of real data for the same n."""
        return {
            "value": self.value, "low": self.low, "high": self.high, "n": n, "features": features, "floor": floor,
        }  # fmt: skip


def halves(strata: np.ndarray, repeats: int, seed: int = 0) -> np.ndarray:
    """Random halves of n samples, stratified: each contains one of every random pair of samples of a stratum.

    Args:
        strata: (n,) the property of each sample that is not random, such as its label; constant if there is none.
        repeats: number of halves; at least two are made.
        seed: seed of the choice.

    Returns:
        (repeats, n // 2) row indices; no index is repeated within a half.
    """
    n = len(strata)
    rng = np.random.default_rng([seed, n])
    found = []
    for _ in range(max(2, repeats)):
        order = rng.permutation(n)
        order = order[np.argsort(strata[order], kind="stable")]
        pairs = order[: n // 2 * 2].reshape(-1, 2)
        found.append(pairs[np.arange(len(pairs)), rng.integers(0, 2, len(pairs))])
    return np.stack(found)


def half_sampled(
    value: float,
    statistic: Callable[[np.ndarray], float],
    rows: np.ndarray,
    n: int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """The interval of a statistic.

    Args:
        value: the statistic of all n samples.
        statistic: computes it from row indices.
        rows: from `halves`, (R, m).
        n: total number of samples.
        bounds: the smallest and largest possible value of the statistic.
    """
    return from_halves(value, [statistic(half) for half in rows], rows.shape[1], n, bounds)


def from_halves(
    value: float, of_halves: Sequence[float], m: int, n: int, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """The interval of a statistic whose values for random halves are known.

    Args:
        value: the statistic of all n samples.
        of_halves: the statistic of each half.
        m: the number of samples in a half.
        n: total number of samples.
        bounds: the smallest and largest possible value of the statistic.
    """
    spread = np.std(of_halves, ddof=1) * math.sqrt(m / (n - m))
    half_width = float(_student(len(of_halves) - 1) * spread)
    return Interval(value, max(bounds[0], value - half_width), min(bounds[1], value + half_width))


def mean(values: np.ndarray) -> Interval:
    """The interval of a mean of independent values (N,)."""
    n = len(values)
    centre = float(np.mean(values))
    half_width = float(_student(n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    return Interval(centre, centre - half_width, centre + half_width)


def over_trainings(found: Sequence[dict[str, Any]]) -> Interval:
    """The interval of a metric over several trainings of one recipe, by Student's t.

    For a single training, the interval of its metric is returned.

    Args:
        found: the metric of each training, {value, low, high}.
    """
    if len(found) == 1:
        return Interval(*(float(found[0][key]) for key in ("value", "low", "high")))
    return mean(np.array([metric["value"] for metric in found], float))


def order(a: Interval, b: Interval) -> int:
    """1 if a is significantly larger than b, -1 if b is larger than a, 0 if they do not differ significantly.

    They differ if the difference exceeds the combined errors on the sides that face each other:
    a > b if a - b > sqrt((a - a_low)^2 + (b_high - b)^2).
    """
    if a.value < b.value:
        return -order(b, a)
    return int(a.value - b.value > math.hypot(a.value - a.low, b.high - b.value))


def proportion(hits: np.ndarray) -> Interval:
    """Wilson's interval for the share of independent hits (N,); it has the right coverage at shares of 0 and 1, too."""
    n = len(hits)
    share = float(np.mean(hits))
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half_width = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Interval(share, max(0.0, min(share, centre - half_width)), min(1.0, max(share, centre + half_width)))


def _student(freedom: int) -> np.float64:
    """The 97.5 % quantile of Student's t; a NumPy scalar, so that products with float32 are float64."""
    from scipy import special  # importing scipy.stats would take half a second in every process that measures

    return np.float64(special.stdtrit(freedom, 0.975))
