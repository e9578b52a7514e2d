"""Modes of a known density in the plane: how many were found, and how many points lie in one at all.

A point is of high quality if it lies within three standard deviations of a mode; a mode is captured if it has
such a point. A model that finds all modes but smears between them, and one that is sharp but forgets modes,
both show.

References:
    VEEGAN (Srivastava et al., 2017), for the protocol     https://arxiv.org/abs/1705.07761
"""

from typing import Any

import numpy as np

from genflow.data import densities
from genflow.evaluation.interval import proportion
from genflow.store import Artifact


def modes(points: np.ndarray, dataset: Artifact) -> dict[str, Any] | None:
    """{captured, of, high_quality} of points (N, 2) in the plane's own units; None where the truth has no modes."""
    source = dataset.meta.get("source", {})
    if source.get("kind") != "density" or source.get("path") not in densities.DENSITIES:
        return None
    truth = densities.density(source["path"])
    if truth.modes is None:
        return None
    distance = np.linalg.norm(points[:, None].astype(np.float64) - truth.modes, axis=2)
    nearest = distance.argmin(1)
    good = distance.min(1) <= 3 * truth.sigma
    share = proportion(good)
    return {
        "captured": len(np.unique(nearest[good])),
        "of": len(truth.modes),
        "high_quality": {**vars(share), "n": len(points)},
    }
