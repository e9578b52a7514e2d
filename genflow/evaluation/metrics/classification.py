"""Classification accuracy: the accuracy on real pictures of a classifier that was trained on samples only.

It detects errors that a distance between moments does not: plausible samples with the wrong label, or samples with the
right label but too little variety. The network of classifier.py is trained from scratch on the samples with their
requested labels, and tested on the reference. The floor is the accuracy after training on as many real pictures.

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

STEPS = 100  # training steps: 25 epochs of 500 samples; the same number for the floor
_floors: dict[tuple[str, str, int], float] = {}  # they are the same for every run of a dataset in this process


def applies(data: "Dataset", options: "Evaluate") -> bool:
    """For pictures with classes, if the option is set: each measurement trains a network."""
    return options.classification and not data.facts.is_points and data.facts.classes > 1


def measure(inputs: Samples) -> dict[str, Reading]:
    """`classification`."""
    return {"classification": classification(inputs.records, inputs.labels, inputs.data, inputs.extractor)}


def classification(
    records: np.ndarray, labels: np.ndarray, data: "Dataset", extractor: "FeatureReference"
) -> Reading:
    """The accuracy, with Wilson's interval over real pictures.

    Args:
        records: samples in the format of a split, (N, H, W, C).
        labels: (N,) the requested classes.
        data: has the held-out rows for the test.
        extractor: selects these rows and those of the floor.
    """
    from genflow.data.values import to_display

    facts, real = data.facts, extractor.real
    held_out, train = data.splits[real.split], data.splits["train"]
    held_out_pictures, truth = to_display(held_out.take(real.reference), facts), held_out.labels_of(real.reference)
    rows = real.floor[: len(records)]
    found = _correct(to_display(records, facts), labels, held_out_pictures, truth, data)
    key = (data.artifact.id, extractor.artifact.id, len(rows))
    if key not in _floors:
        hits = _correct(to_display(train.take(rows), facts), train.labels_of(rows), held_out_pictures, truth, data)
        _floors[key] = float(hits.mean())
    return Reading(proportion(found), len(found), "pixels", _floors[key])


def _correct(
    pictures: np.ndarray, labels: np.ndarray, held_out_pictures: np.ndarray, truth: np.ndarray, data: "Dataset"
) -> np.ndarray:
    """Train on pictures (N, H, W, C); whether each held-out picture (M, H, W, C) is classified correctly, (M,)."""
    from genflow.evaluation.features import classifier

    task = classifier.Task("labels", data.facts.classes)
    net = classifier.train(lambda rows: pictures[rows], labels, task, data.facts.shape, steps=STEPS)
    return classifier.embed(net, held_out_pictures)[1] == truth


METRIC = Metric(
    measure, needs="samples", numbers=(Number("classification", better="larger", tune=False),), applies=applies,
    records=ALL, order=50,
)  # fmt: skip
