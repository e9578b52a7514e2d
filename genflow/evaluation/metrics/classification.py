"""Classification accuracy: how well a classifier that has only seen samples tells real pictures apart.

It sees what a distance between moments does not: samples that look right and carry the wrong label, or the right ones
without their variety. The classifier is the judge's (classifier.py), trained anew on the samples and the labels that
they were asked for, and tried on the reference. Its floor is the same for as many real training pictures.

References:
    Classification Accuracy Score for Conditional Generative Models (Ravuri, Vinyals, 2019)
    https://arxiv.org/abs/1905.10887
"""


import numpy as np

from genflow.data.shards import Dataset, to_display
from genflow.evaluation.features import classifier
from genflow.evaluation.features.extractor import FeatureReference
from genflow.evaluation.interval import proportion
from genflow.evaluation.results import Metric

STEPS = 100  # of the classifier's training: 25 passes over 500 samples; real rows have as many, so it is fair
_floors: dict[tuple[str, str, int], float] = {}  # the same for every run of a dataset that a process measures


def classification(records: np.ndarray, labels: np.ndarray, data: Dataset, judge: FeatureReference) -> Metric | None:
    """The accuracy as a metric, with Wilson's interval over real pictures; None without classes, or for points.

    Args:
        records: samples, as a split has them, (N, H, W, C).
        labels: (N,) what they were asked to be.
        data: whose held-out rows the classifier is tried on.
        judge: which rows those are, and the floor's.
    """
    facts, real = data.facts, judge.real
    if facts.is_points or facts.classes < 2:
        return None
    held_out, train = data.splits[real.split], data.splits["train"]
    shown, truth = to_display(held_out.take(real.reference), facts), held_out.labels[real.reference]
    rows = real.floor[: len(records)]
    found = _hits(to_display(records, facts), labels, shown, truth, data)
    key = (data.artifact.id, judge.artifact.id, len(rows))
    if key not in _floors:
        learnt = _hits(to_display(train.take(rows), facts), train.labels[rows], shown, truth, data)
        _floors[key] = float(learnt.mean())
    return proportion(found).metric(len(found), "pixels", _floors[key])


def _hits(
    learnt: np.ndarray, labels: np.ndarray, shown: np.ndarray, truth: np.ndarray, data: Dataset
) -> np.ndarray:
    """Which of the pictures shown (M, H, W, C) a classifier that learnt others (N, H, W, C) gets right, (M,)."""
    task = classifier.Task("labels", data.facts.classes)
    net = classifier.train(lambda rows: learnt[rows], labels, task, data.facts.shape, steps=STEPS)
    return classifier.embed(net, shown)[1] == truth
