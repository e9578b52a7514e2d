"""The Fréchet distance between two sets of features, each modelled as a Gaussian.

    d^2 = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1^1/2 S_2 S_1^1/2)^1/2

The last trace is the sum of the square roots of the eigenvalues of R^T S_2 R, for any R with R R^T = S_1. S_1 is the
covariance of the reference, and R its Cholesky factor. So a distance takes one product of the samples and the
eigenvalues of a symmetric matrix. A direction in which the samples do not vary has the eigenvalue 0, up to rounding:
the same code handles fewer samples than dimensions.

With N samples the distance is biased upwards by about the number of dimensions divided by N. Compare it only at the
same N, and with its floor, the distance of N real rows. It is called `fd`; FID is the name of this distance on one
particular Inception network.

References:
    The Fréchet distance between multivariate normal distributions (Dowson, Landau, 1982)
    GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017)   https://arxiv.org/abs/1706.08500
    Effectively Unbiased FID (Chong, Forsyth, 2020), for the bias        https://arxiv.org/abs/1911.07023
"""

import math

import numpy as np

from genflow.evaluation.interval import Interval, half_sampled, halves
from genflow.evaluation.metrics.base import Column, Features, Metric, Number, Reading, Row, number
from genflow.system.streams import NONE


class Gaussian:
    """The Gaussian of a reference, with a root R of its covariance.

    Args:
        features: (M, D) float64: square roots of eigenvalues near 0 lose half of the digits.
    """

    def __init__(self, features: np.ndarray) -> None:
        self.mean, covariance = _moments(features)
        self.trace = float(np.trace(covariance))
        try:
            self.root = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:  # the reference does not vary in some direction
            values, vectors = np.linalg.eigh(covariance)
            self.root = vectors * np.sqrt(values.clip(min=0))

    def distance(self, features: np.ndarray) -> float:
        """The squared Fréchet distance to the Gaussian of features (N, D), at least two of them."""
        mean, covariance = _moments(features)
        squares = np.linalg.eigvalsh(self.root.T @ covariance @ self.root)
        cross = float(np.sqrt(squares.clip(min=0)).sum())
        return max(0.0, float(np.square(mean - self.mean).sum() + np.trace(covariance)) + self.trace - 2 * cross)


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,) and the covariance (D, D) of features (N, D), at least two of them."""
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet(
    features: np.ndarray, reference: Gaussian, repeats: int = 50, seed: int = 0, strata: np.ndarray | None = None
) -> Interval:
    """The distance to a reference, with its interval.

    Args:
        features: (N, D).
        reference: the Gaussian of real data.
        repeats: number of half-samples for the interval.
        seed: seed of the half-samples.
        strata: (N,) the requested labels of samples; None: none were requested.
    """
    n = len(features)
    value = reference.distance(features)
    rows = halves(np.zeros(n) if strata is None else strata, repeats, seed)
    return half_sampled(value, lambda half: reference.distance(features[half]), rows, n, bounds=(0.0, math.inf))


def measure(inputs: Features) -> dict[str, Reading]:
    """`fd`."""
    found = frechet(inputs.x, inputs.extractor.cached(Gaussian), inputs.repeats, inputs.seed, inputs.labels)
    return {"fd": Reading(found, len(inputs.x))}


def _distance(row: Row) -> str:
    fd = row["metrics"]["fd"]
    return f"{number(fd['value'])} ({number(fd['low'])}–{number(fd['high'])})"


def _floors(row: Row) -> str:
    fd = row["metrics"]["fd"]
    return f"{fd['value'] / fd['floor']:.1f}" if fd.get("floor", 0) > 0 else NONE


METRIC = Metric(
    measure, needs="features", numbers=(Number("fd", better="smaller"),), order=10,
    table=(Column("fd (95 %)", _distance), Column("× floor", _floors)),  # the report always has a column of fd
)  # fmt: skip
