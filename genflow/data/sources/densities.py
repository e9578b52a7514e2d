"""Densities in the plane with a known logarithm: a trained model can be compared with the true density.

grid25        25 Gaussians of sigma 0.05 on the grid {-4, -2, 0, 2, 4}^2; the label is the mode
grid25_unlabelled  the same without labels: a model does not receive the mode
grid25_uneven      the same without labels; the weight of the n-th mode is proportional to 1/n, from 26 % to 1 %
ring8         8 Gaussians of sigma 0.02 on a circle of radius 2; the label is the mode
moons         two interlocking half circles of radius 1, blurred by sigma 0.1; the label is the half circle
checkerboard  the 8 dark squares of a 4 x 4 board on [-4, 4]^2, uniform: log p = -log 32 on them; no labels

Each half circle of `moons` *is* a mixture of 128 equal Gaussians at equal steps of its arc. They are a quarter of sigma
apart, so the arc looks continuous. The log-density is therefore exact, not the approximation of an integral.

References:
    Grid: Srivastava et al., "VEEGAN" (2017) https://arxiv.org/abs/1705.07761
    Ring: Metz et al., "Unrolled generative adversarial networks" (2017) https://arxiv.org/abs/1611.02163
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from genflow.data.sources import Opens
from genflow.data.sources.base import BadRecord, ImageSpec, ImageSummary, Record, Source
from genflow.errors import UsageError
from genflow.recipe.schema import Data

OPENS = Opens(
    names=("grid25", "grid25_unlabelled", "grid25_uneven", "ring8", "moons", "checkerboard"), order=3
)
BLOCK = 1024  # points per random generator
GAUSSIANS_PER_ARC = 128


class Density(ABC):
    """A probability density in the plane.

    Attributes:
        scale: x = point / scale has standard deviation 1 (the mean of both coordinates' variances is 1).
        class_names: the class names; empty for points without labels.
        modes: (M, 2) the centres of separate modes, in the order of the labels; None for a density without modes.
        sigma: the standard deviation of each mode; 0 for a density without modes.
        weights: (M,) the weights of the modes; None for a density without modes.
    """

    scale: float
    class_names: tuple[str, ...] = ()
    modes: np.ndarray | None = None
    sigma: float = 0.0
    weights: np.ndarray | None = None

    @abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw points (N, 2) float32 and their labels (N,)."""

    @abstractmethod
    def log_density(self, points: np.ndarray) -> np.ndarray:
        """log p at points (N, 2), unscaled, in nats: (N,) float64."""


class Gaussians(Density):
    """A mixture of round Gaussians.

    Args:
        means: (M, 2) the centres.
        sigma: the common standard deviation.
        labels: (M,) the label of each Gaussian.
        class_names: the class names.
        separate: whether each Gaussian is a separate mode.
        weights: (M,) the weights, up to a factor; None: equal weights.
    """

    def __init__(
        self, means: np.ndarray, sigma: float, labels: np.ndarray, class_names: tuple[str, ...], separate: bool = True,
        weights: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.means, self.sigma, self.labels, self.class_names = means, sigma, labels, class_names
        self.uneven = weights is not None
        self.shares = np.full(len(means), 1 / len(means)) if weights is None else weights / weights.sum()
        self.modes, self.weights = (means, self.shares) if separate else (None, None)
        centre = self.shares @ means
        self.scale = math.sqrt(float((self.shares @ (means - centre) ** 2).mean()) + sigma**2)

    def sample(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        if self.uneven:
            which = rng.choice(len(self.means), count, p=self.shares)
        else:
            which = rng.integers(0, len(self.means), count)
        points = self.means[which] + self.sigma * rng.standard_normal((count, 2))
        return points.astype(np.float32), self.labels[which]

    def log_density(self, points: np.ndarray) -> np.ndarray:
        result = np.empty(len(points))
        for start in range(0, len(points), BLOCK):
            block = points[start : start + BLOCK].astype(np.float64)
            distance2 = ((block[:, None] - self.means) ** 2).sum(-1)
            exponent = -distance2 / (2 * self.sigma**2)
            peak = exponent.max(1)
            result[start : start + BLOCK] = peak + np.log(np.exp(exponent - peak[:, None]) @ self.shares)
        return result - math.log(2 * math.pi * self.sigma**2)


class Checkerboard(Density):
    """Uniform on the 8 dark squares, of side 2, of a 4 x 4 board."""

    scale = math.sqrt(8**2 / 12)
    corners = np.array([(x, y) for x in range(-4, 4, 2) for y in range(-4, 4, 2) if (x + y) % 4 == 0])

    def sample(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        which = rng.integers(0, len(self.corners), count)
        # odd multiples of 2^-20: exact in float32, and never on an edge
        inside = (2 * rng.integers(0, 2**20, (count, 2)) + 1) / 2**20
        return (self.corners[which] + inside).astype(np.float32), np.zeros(count, np.int64)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        squares = np.floor(points.astype(np.float64) / 2)
        dark = (squares.sum(1) % 2 == 0) & (np.abs(squares + 0.5) < 2).all(1)
        return np.where(dark, -math.log(32), -math.inf)


GRID = np.array([(x, y) for y in range(-4, 5, 2) for x in range(-4, 5, 2)], float)


def _grid25() -> Gaussians:
    return Gaussians(GRID, 0.05, np.arange(25), tuple(f"({x:.0f}, {y:.0f})" for x, y in GRID))


def _grid25_unlabelled() -> Gaussians:
    return Gaussians(GRID, 0.05, np.zeros(25, np.int64), ())


def _grid25_uneven() -> Gaussians:
    order = 7 * np.arange(25) % 25  # modes with similar weights are not neighbours in the plane
    return Gaussians(GRID[order], 0.05, np.zeros(25, np.int64), (), weights=1 / np.arange(1.0, 26.0))


def _ring8() -> Gaussians:
    angles = np.arange(8) * (math.pi / 4)
    means = 2 * np.stack([np.cos(angles), np.sin(angles)], 1)
    return Gaussians(means, 0.02, np.arange(8), tuple(f"{45 * n} degrees" for n in range(8)))


def _moons() -> Gaussians:
    angles = (np.arange(GAUSSIANS_PER_ARC) + 0.5) * (math.pi / GAUSSIANS_PER_ARC)
    upper = np.stack([np.cos(angles) - 0.5, np.sin(angles) - 0.25], 1)
    means = np.concatenate([upper, -upper])
    labels = np.arange(2 * GAUSSIANS_PER_ARC) // GAUSSIANS_PER_ARC
    return Gaussians(means, 0.1, labels, ("upper", "lower"), separate=False)


DENSITIES = dict(
    zip(OPENS.names, (_grid25, _grid25_unlabelled, _grid25_uneven, _ring8, _moons, Checkerboard), strict=True)
)


def density(name: str) -> Density:
    """A density by its name, one of `DENSITIES`."""
    return DENSITIES[name]()


def open_name(name: str, data: Data) -> Source:
    """Draw points from a density.

    Raises:
        UsageError: an option applies to pictures only.
    """
    if data.size is not None or data.channels != "auto":
        raise UsageError(f"{name} is a density in the plane: it has no size and no channels", "omit --size, --channels")
    return DensitySource(name, data.samples, data.seed)


@dataclass
class DensitySource(Source):
    """Points drawn from a density.

    Args:
        samples: the number of points.
        seed: the seed of the random generators.
    """

    samples: int
    seed: int

    @property
    def levels(self) -> None:
        return None

    @property
    def scale(self) -> float:
        return density(self.name).scale

    @property
    def about(self) -> dict[str, Any]:
        return {"kind": "density", "path": self.name}

    def listing(self) -> list[list[Any]]:
        return [[self.name, self.samples, self.seed]]

    def splits(self) -> dict[str, int]:
        return {"train": self.samples}

    def class_names(self) -> tuple[str, ...]:
        return density(self.name).class_names

    def summarize(self, options: Data) -> ImageSummary:
        return ImageSummary()

    def part(self, split: str, rows: np.ndarray) -> "DensityPart":
        return DensityPart(self.name, self.seed, rows)


@dataclass(frozen=True)
class DensityPart:
    """Some of the points: the random generator of (seed, b) draws block b of 1,024 points."""

    name: str
    seed: int
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def summarize(self) -> ImageSummary:
        return ImageSummary()

    def records(self, spec: ImageSpec) -> Iterator[Record | BadRecord]:
        truth = density(self.name)
        for block in np.unique(self.rows // BLOCK):
            rng = np.random.default_rng([self.seed, int(block)])
            points, labels = truth.sample(rng, BLOCK)
            rows = self.rows[self.rows // BLOCK == block]
            log_density = truth.log_density(points)
            for row in rows:
                offset = row % BLOCK
                yield Record(f"{self.name}/{row}", points[offset], int(labels[offset]), float(log_density[offset]))
