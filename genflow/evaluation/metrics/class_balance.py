"""The share of each class among samples and in real data, as predicted by the classifier of the features.

    shares    share of samples of each class, with Wilson's interval
    real      the same for as many real rows with the requested labels
    rarest    the most neglected class, and its share divided by that in real data: 1 if no class is neglected

A family that follows the requested class has the shares of real data. For one that is not conditional, or ignores the
class, this section shows which classes it neglects.
"""

from typing import Any

import numpy as np

from genflow.evaluation.interval import proportion
from genflow.evaluation.metrics.base import Metric, Samples


def measure(inputs: Samples) -> dict[str, Any] | None:
    """The class shares of samples and of the floor's rows, which have the requested labels."""
    if inputs.classes is None:
        return None
    rows = inputs.data.splits["train"].take(inputs.extractor.real.floor[: len(inputs.classes)])
    real = inputs.extractor.embed(rows)[1]
    return None if real is None else class_shares(inputs.classes, real, inputs.data.facts.class_names)


def class_shares(classes: np.ndarray, real: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """{names, shares, real, rarest, n} from predicted classes of samples (N,) and of real rows (M,)."""
    shares = [proportion(classes == label) for label in range(len(names))]
    truth = np.bincount(real, minlength=len(names)) / len(real)
    parts = {label: shares[label].value / truth[label] for label in range(len(names)) if truth[label] > 0}
    least = min(parts, key=lambda label: parts[label])
    ratio = {end: getattr(shares[least], end) / truth[least] for end in ("value", "low", "high")}
    return {
        "names": list(names),
        "shares": [vars(share) for share in shares],
        "real": truth.tolist(),
        "rarest": {"class": names[least], **ratio},
        "n": len(classes),
    }


METRIC = Metric(
    measure, needs="samples", section="classes", order=95, applies=lambda data, options: data.facts.classes > 1
)
