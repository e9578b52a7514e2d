"""The metrics of a set of features against the real data's, each with its interval and its floor."""

from functools import cached_property

import numpy as np

from genflow.evaluation.features.extractor import FeatureReference
from genflow.evaluation.interval import Interval
from genflow.evaluation.metrics import frechet, kid
from genflow.evaluation.metrics.prdc import prdc
from genflow.evaluation.results import Metric
from genflow.recipe.schema import Evaluate

FLOOR_DRAWS = 3  # sets of real rows that a floor is the mean of, where there are so many


class MetricSuite:
    """Measures features against a judge's reference.

    A floor is the same metric of as many real training rows, which share none with the reference and were kept
    from the judge: what a perfect model would get at that N, asked for the same labels. It is the mean over up to
    three such sets.

    Args:
        judge: the features.
        options: the recipe's `evaluate` section.
    """

    def __init__(self, judge: FeatureReference, options: Evaluate) -> None:
        self.judge, self.options = judge, options

    @cached_property
    def _gaussian(self) -> frechet.Gaussian:
        return frechet.Gaussian(self.judge.reference)

    @cached_property
    def _kernel(self) -> kid.Reference:
        return kid.Reference.of(self.judge.reference)

    def quality(self, features: np.ndarray, labels: np.ndarray) -> dict[str, Metric]:
        """fd, kid, precision, recall, density and coverage of features (N, D) with labels (N,), as metrics."""
        floors = [self._measure(rows, labels, 2) for rows in self._real(labels)]
        metrics = {}
        for name, (interval, count) in self._measure(features, labels, self.options.bootstrap).items():
            floor = float(np.mean([found[name][0].value for found in floors]))
            metrics[name] = interval.metric(count, self.judge.name, floor)
        return metrics

    def distance(self, features: np.ndarray, labels: np.ndarray) -> Metric:
        """The Fréchet distance of features (N, D) with labels (N,) alone, as a metric."""
        floor = float(np.mean([self._gaussian.distance(rows) for rows in self._real(labels)]))
        found = frechet.frechet(features, self._gaussian, self.options.bootstrap, self.options.seed, labels)
        return found.metric(len(features), self.judge.name, floor)

    def _measure(self, rows: np.ndarray, labels: np.ndarray, repeats: int) -> dict[str, tuple[Interval, int]]:
        """Each metric's interval, and the number of points on either side."""
        seed, n = self.options.seed, len(rows)
        spread = prdc(rows, self.judge.reference, repeats=repeats, seed=seed, strata=labels)
        return {
            "fd": (frechet.frechet(rows, self._gaussian, repeats, seed, labels), n),
            "kid": (kid.kid(rows, self._kernel, repeats, seed, labels), n),
            "precision": (spread.precision, spread.n),
            "recall": (spread.recall, spread.n),
            "density": (spread.density, spread.n),
            "coverage": (spread.coverage, spread.n),
        }

    def _real(self, labels: np.ndarray) -> list[np.ndarray]:
        """Up to three sets of real training rows, no row twice, each with as many of every label as `labels` has.

        Where a label is asked for more often than there are such rows, rows of other labels stand in for it: one set.
        """
        asked, counts = np.unique(labels, return_counts=True)
        rows = [np.flatnonzero(self.judge.labels == label) for label in asked]
        sets = min([FLOOR_DRAWS, *(len(own) // count for own, count in zip(rows, counts, strict=True))])
        chosen = [
            np.concatenate([own[i * count : (i + 1) * count] for own, count in zip(rows, counts, strict=True)])
            for i in range(max(1, sets))
        ]
        if not sets:
            others = np.setdiff1d(np.arange(len(self.judge.labels)), chosen[0])
            chosen = [np.concatenate([chosen[0], others[: len(labels) - len(chosen[0])]])]
        return [self.judge.floor[np.sort(own)] for own in chosen]
