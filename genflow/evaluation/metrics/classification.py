"""Classification accuracy: how well a classifier that has only seen samples tells real pictures apart.

It sees what a distance between moments does not: samples that look right and carry the wrong label, or the right ones
without their variety. The classifier is the judge's (classifier.py), trained anew on the samples and the labels that
they were asked for, and tried on the reference. Its floor is the same for as many real training pictures.

References:
    Classification Accuracy Score for Conditional Generative Models (Ravuri, Vinyals, 2019)
    https://arxiv.org/abs/1905.10887
"""

from typing import TYPE_CHECKING

import numpy as np

from genflow.evaluation.interval import proportion
from genflow.evaluation.metrics.base import ALL, Metric, Number, Reading, Samples

if TYPE_CHECKING:
    from genflow.data.shards import Dataset
    from genflow.evaluation.features.extractor import FeatureReference
    from genflow.recipe.schema import Evaluate

STEPS = 100  # of the classifier's training: 25 passes over 500 samples; real rows have as many, so it is fair
_floors: dict[tuple[str, str, int], float] = {}  # the same for every run of a dataset that a process measures


def applies(data: "Dataset", options: "Evaluate") -> bool:
    """Where it is asked for, of pictures with classes: it takes a training each time."""
    return options.classification and not data.facts.is_points and data.facts.classes > 1


def measure(inputs: Samples) -> dict[str, Reading]:
    """`classification`."""
    return {"classification": classification(inputs.records, inputs.labels, inputs.data, inputs.extractor)}


def classification(
    records: np.ndarray, labels: np.ndarray, data: "Dataset", extractor: "FeatureReference"
) -> Reading:
    """The accuracy, with Wilson's interval over real pictures.

    Args:
        records: samples, as a split has them, (N, H, W, C).
        labels: (N,) what they were asked to be.
        data: whose held-out rows the classifier is tried on.
        judge: which rows those are, and the floor's.
    """
    from genflow.data.shards import to_display

    facts, real = data.facts, extractor.real
    held_out, train = data.splits[real.split], data.splits["train"]
    held_out_pictures, truth = to_display(held_out.take(real.reference), facts), held_out.labels[real.reference]
    rows = real.floor[: len(records)]
    found = _correct(to_display(records, facts), labels, held_out_pictures, truth, data)
    key = (data.artifact.id, extractor.artifact.id, len(rows))
    if key not in _floors:
        hits = _correct(to_display(train.take(rows), facts), train.labels[rows], held_out_pictures, truth, data)
        _floors[key] = float(hits.mean())
    return Reading(proportion(found), len(found), "pixels", _floors[key])


def _correct(
    pictures: np.ndarray, labels: np.ndarray, held_out_pictures: np.ndarray, truth: np.ndarray, data: "Dataset"
) -> np.ndarray:
    """Which of the pictures shown (M, H, W, C) a classifier that learnt others (N, H, W, C) gets right, (M,)."""
    from genflow.evaluation.features import classifier

    task = classifier.Task("labels", data.facts.classes)
    net = classifier.train(lambda rows: pictures[rows], labels, task, data.facts.shape, steps=STEPS)
    return classifier.embed(net, held_out_pictures)[1] == truth


METRIC = Metric(
    measure, needs="samples", numbers=(Number("classification", better="larger", tune=False),), applies=applies,
    records=ALL, order=50,
)  # fmt: skip
