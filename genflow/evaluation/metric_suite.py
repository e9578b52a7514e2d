"""The metrics of a set of features against the real data's, each with its interval and its floor."""

from dataclasses import replace

import numpy as np

from genflow.evaluation import metrics
from genflow.evaluation.features.extractor import FeatureReference
from genflow.evaluation.metrics import frechet
from genflow.evaluation.metrics.base import Features, Metric, Reading
from genflow.evaluation.results import MetricValue
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

    def __init__(self, extractor: FeatureReference, options: Evaluate) -> None:
        self.extractor, self.options = extractor, options

    def measure_all(self, features: np.ndarray, labels: np.ndarray) -> dict[str, MetricValue]:
        """Every metric that features (N, D) with labels (N,) are enough for."""
        needed = [metric for metric in metrics.every() if metric.needs == "features"]
        found = [self.measure(metric, features, labels) for metric in needed]
        return {name: reading.metric(self.extractor) for readings in found for name, reading in readings.items()}

    def measure(self, metric: Metric, features: np.ndarray, labels: np.ndarray) -> dict[str, Reading]:
        """What one metric says of features (N, D) with labels (N,), with its floors."""
        floors = [self.measure_without_floor(metric, rows, labels, 2) for rows in self._real(labels)]
        found = self.measure_without_floor(metric, features, labels)
        real = {name: [floor[name].interval.value for floor in floors] for name in found}
        return {name: replace(reading, floor=float(np.mean(real[name]))) for name, reading in found.items()}

    def measure_without_floor(
        self, metric: Metric, features: np.ndarray, labels: np.ndarray, repeats: int = 0
    ) -> dict[str, Reading]:
        """The same without floors; `repeats` are half-samples for the intervals, 0: as the options say."""
        repeats = repeats or self.options.bootstrap
        found: dict[str, Reading] = metric.measure(
            Features(features, labels, self.extractor, repeats, self.options.seed)
        )
        return found

    def distance(self, features: np.ndarray, labels: np.ndarray) -> MetricValue:
        """The Fréchet distance of features (N, D) with labels (N,) alone, as a metric."""
        gaussian = self.extractor.cached(frechet.Gaussian)
        floor = float(np.mean([gaussian.distance(rows) for rows in self._real(labels)]))
        found = frechet.frechet(features, gaussian, self.options.bootstrap, self.options.seed, labels)
        return found.metric(len(features), self.extractor.name, floor)

    def _real(self, labels: np.ndarray) -> list[np.ndarray]:
        """Up to three sets of real training rows, no row twice, each with as many of every label as `labels` has.

        Where a label is asked for more often than there are such rows, rows of other labels stand in for it: one set.
        """
        asked, counts = np.unique(labels, return_counts=True)
        rows = [np.flatnonzero(self.extractor.labels == label) for label in asked]
        sets = min([FLOOR_DRAWS, *(len(own) // count for own, count in zip(rows, counts, strict=True))])
        chosen = [
            np.concatenate([own[i * count : (i + 1) * count] for own, count in zip(rows, counts, strict=True)])
            for i in range(max(1, sets))
        ]
        if not sets:
            others = np.setdiff1d(np.arange(len(self.extractor.labels)), chosen[0])
            chosen = [np.concatenate([chosen[0], others[: len(labels) - len(chosen[0])]])]
        return [self.extractor.floor[np.sort(own)] for own in chosen]
