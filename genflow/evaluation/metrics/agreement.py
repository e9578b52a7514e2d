"""Whether samples show the class that they were asked for, as the judge's classifier sees them.

The floor is the classifier's own accuracy on held-out pictures.
"""

from genflow.evaluation.interval import proportion
from genflow.evaluation.metrics.base import Metric, Number, Reading, Samples, with_interval


def measure(inputs: Samples) -> dict[str, Reading]:
    """`agreement`, the share of samples; nothing where the judge tells no classes."""
    if inputs.classes is None:
        return {}
    agree = proportion(inputs.classes == inputs.labels)
    return {"agreement": Reading(agree, len(inputs.labels), floor=inputs.extractor.about["accuracy"])}


AGREEMENT = Number("agreement", better="larger")
METRIC = Metric(
    measure, needs="samples", numbers=(AGREEMENT,), order=40, report=(with_interval(AGREEMENT, "label ↑"),)
)
