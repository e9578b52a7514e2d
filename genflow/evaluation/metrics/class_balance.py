"""Which classes samples show: the share of each, as the judge's classifier sees it, beside real data's.

    shares    of samples that show class i, with Wilson's interval
    real      of as many real rows that were asked for the same labels, as the same classifier sees them
    rarest    the class whose share is the smallest part of real data's, and that part: 1 if nothing is neglected

A family that is told which class to draw, and heeds it, has real data's shares; one that is not told, or does not heed
it, shows here what it forgets.
"""

from typing import Any

import numpy as np

from genflow.evaluation.interval import proportion
from genflow.evaluation.metrics.base import Metric, Samples


def measure(inputs: Samples) -> dict[str, Any] | None:
    """The classes that samples show, beside the floor's rows: these have the labels that samples are asked for."""
    if inputs.classes is None:
        return None
    rows = inputs.data.splits["train"].take(inputs.extractor.real.floor[: len(inputs.classes)])
    real = inputs.extractor.embed(rows)[1]
    return None if real is None else class_shares(inputs.classes, real, inputs.data.facts.class_names)


def class_shares(classes: np.ndarray, real: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """{names, shares, real, rarest, n} of the classes that samples (N,) and real rows (M,) show."""
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
