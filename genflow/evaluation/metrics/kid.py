"""The kernel distance (KID): an unbiased estimate of the squared maximum mean discrepancy.

    k(x, y) = (x . y / D + 1)^3
    MMD^2 = E k(x, x') - 2 E k(x, y) + E k(y, y'),   x, x' distinct samples, y, y' distinct real rows

Pairs of samples are formed within blocks of at most 1,000: the estimate remains unbiased and needs constant memory. Its
mean is zero if the two distributions are equal, so single values can be negative.

References:
    Demystifying MMD GANs (Binkowski et al., 2018)                  https://arxiv.org/abs/1801.01401
    B-tests: low variance kernel two-sample tests (Zaremba et al., 2013)   https://arxiv.org/abs/1307.1954
"""

from dataclasses import dataclass

import numpy as np

from genflow.evaluation.interval import Interval, half_sampled, halves
from genflow.evaluation.metrics.base import Features, Metric, Number, Reading, number, with_interval

BLOCK = 1000


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The cubic kernel of rows x (N, D) with rows y (M, D): (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


@dataclass(frozen=True)
class Reference:
    """Features of real data, with the term of the discrepancy that depends only on them.

    Args:
        features: (M, D).
        within: the mean of k over pairs of distinct rows.
    """

    features: np.ndarray
    within: float

    @classmethod
    def of(cls, features: np.ndarray) -> "Reference":
        """From features (M, D)."""
        m = len(features)
        total = sum(float(kernel(features[i : i + BLOCK], features).sum()) for i in range(0, m, BLOCK))
        own = float(((np.square(features).sum(1) / features.shape[1] + 1) ** 3).sum())
        return cls(features, (total - own) / (m * (m - 1)))


def kid(
    features: np.ndarray, reference: Reference, repeats: int = 50, seed: int = 0, strata: np.ndarray | None = None
) -> Interval:
    """The discrepancy between features (N, D) and the reference, with its interval; arguments as in `frechet`."""
    n = len(features)
    parts = np.array_split(np.arange(n), -(-n // BLOCK))
    cross = np.concatenate([kernel(features[part], reference.features).mean(1) for part in parts])
    among = [kernel(features[part], features[part]) for part in parts]
    for block in among:
        np.fill_diagonal(block, 0)

    def statistic(rows: np.ndarray) -> float:
        chosen = np.zeros(n)
        chosen[rows] = 1
        pairs = [(chosen[part], block) for part, block in zip(parts, among, strict=True)]
        total = sum(float(w @ block @ w) for w, block in pairs)
        count = sum(float(w.sum() * (w.sum() - 1)) for w, _ in pairs)
        return total / count - 2 * float(cross[rows].mean()) + reference.within

    rows = halves(np.zeros(n) if strata is None else strata, repeats, seed)
    return half_sampled(statistic(np.arange(n)), statistic, rows, n)


def measure(inputs: Features) -> dict[str, Reading]:
    """`kid`."""
    found = kid(inputs.x, inputs.extractor.cached(Reference.of), inputs.repeats, inputs.seed, inputs.labels)
    return {"kid": Reading(found, len(inputs.x))}


KID = Number("kid", better="smaller")
METRIC = Metric(
    measure, needs="features", numbers=(KID,), order=20,
    report=(with_interval(KID, "KID ↓<small>× 1000</small>", number, 1000),),
)  # fmt: skip
