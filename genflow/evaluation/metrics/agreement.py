"""The share of samples that the classifier of the features assigns to the requested class.

The floor is the accuracy of the classifier on held-out pictures.
"""

from genflow.evaluation.interval import proportion
from genflow.evaluation.metrics.base import Metric, Number, Reading, Samples, with_interval


def measure(inputs: Samples) -> dict[str, Reading]:
    """`agreement`; {} if the features have no classifier."""
    if inputs.classes is None:
        return {}
    agree = proportion(inputs.classes == inputs.labels)
    return {"agreement": Reading(agree, len(inputs.labels), floor=inputs.extractor.about["accuracy"])}


AGREEMENT = Number("agreement", better="larger")
METRIC = Metric(
    measure, needs="samples", numbers=(AGREEMENT,), order=40, report=(with_interval(AGREEMENT, "label ↑"),)
)
