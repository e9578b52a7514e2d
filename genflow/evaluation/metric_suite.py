"""Metrics that compare features of samples with features of real data, each with its interval and its floor."""

from dataclasses import replace

import numpy as np

from genflow.evaluation import metrics
from genflow.evaluation.features.extractor import FeatureReference
from genflow.evaluation.metrics import frechet
from genflow.evaluation.metrics.base import Features, Metric, Reading
from genflow.evaluation.results import MetricValue
from genflow.recipe.schema import Evaluate

FLOOR_DRAWS = 3  # a floor is the mean over up to so many sets of real rows


class MetricSuite:
    """Compares features with the reference of a feature extractor.

    The floor of a metric is its value for as many real training rows with the same labels: the value of a perfect
    model at that N. These rows are not in the reference, and the extractor was not trained on them. The floor is the
    mean over up to three such sets of rows.

    Args:
        extractor: the feature extractor with the features of real data.
        options: the recipe's `evaluate` section.
    """

    def __init__(self, extractor: FeatureReference, options: Evaluate) -> None:
        self.extractor, self.options = extractor, options

    def measure_all(self, features: np.ndarray, labels: np.ndarray) -> dict[str, MetricValue]:
        """Every metric that needs only features (N, D) and labels (N,)."""
        needed = [metric for metric in metrics.every() if metric.needs == "features"]
        found = [self.measure(metric, features, labels) for metric in needed]
        return {name: reading.metric(self.extractor) for readings in found for name, reading in readings.items()}

    def measure(self, metric: Metric, features: np.ndarray, labels: np.ndarray) -> dict[str, Reading]:
        """One metric of features (N, D) with labels (N,), with floors."""
        floors = [self.measure_without_floor(metric, rows, labels, 2) for rows in self._real(labels)]
        found = self.measure_without_floor(metric, features, labels)
        real = {name: [floor[name].interval.value for floor in floors] for name in found}
        return {name: replace(reading, floor=float(np.mean(real[name]))) for name, reading in found.items()}

    def measure_without_floor(
        self, metric: Metric, features: np.ndarray, labels: np.ndarray, repeats: int = 0
    ) -> dict[str, Reading]:
        """The same without floors; `repeats` is the number of half-samples, 0 for the number in the options."""
        repeats = repeats or self.options.bootstrap
        found: dict[str, Reading] = metric.measure(
            Features(features, labels, self.extractor, repeats, self.options.seed)
        )
        return found

    def distance(self, features: np.ndarray, labels: np.ndarray) -> MetricValue:
        """Only the Fréchet distance of features (N, D) with labels (N,), as a metric."""
        gaussian = self.extractor.cached(frechet.Gaussian)
        floor = float(np.mean([gaussian.distance(rows) for rows in self._real(labels)]))
        found = frechet.frechet(features, gaussian, self.options.bootstrap, self.options.seed, labels)
        return found.metric(len(features), self.extractor.name, floor)

    def _real(self, labels: np.ndarray) -> list[np.ndarray]:
        """Up to three sets of real training rows, no row twice, each with the label counts of `labels`.

        If there are too few rows of a label even for one set, rows of other labels replace them in a single set.
        """
        requested, counts = np.unique(labels, return_counts=True)
        rows = [np.flatnonzero(self.extractor.labels == label) for label in requested]
        sets = min([FLOOR_DRAWS, *(len(own) // count for own, count in zip(rows, counts, strict=True))])
        chosen = [
            np.concatenate([own[i * count : (i + 1) * count] for own, count in zip(rows, counts, strict=True)])
            for i in range(max(1, sets))
        ]
        if not sets:
            others = np.setdiff1d(np.arange(len(self.extractor.labels)), chosen[0])
            chosen = [np.concatenate([chosen[0], others[: len(labels) - len(chosen[0])]])]
        return [self.extractor.floor[np.sort(own)] for own in chosen]
