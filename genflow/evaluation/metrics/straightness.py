"""Curvature of the paths from noise to data (`Family.straightness`): 0 for straight paths, which need one step only."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from genflow.evaluation.interval import Z
from genflow.evaluation.metrics.base import Metric, Model, Number

if TYPE_CHECKING:
    from genflow.sampling.engine import Engine

PATHS = 128  # largest number of paths to measure


def measure(inputs: Model) -> dict[str, Any] | None:
    """The mean over paths with its 95 % interval, {value, low, high, n}; None for a family without an ODE."""
    found = straightness(inputs.engine, inputs.labels, inputs.options.seed, inputs.prompts)
    if found is None:
        return None
    n = len(found)
    value, error = float(found.mean()), float(found.std(ddof=1) / n**0.5)
    return {"value": value, "low": value - Z * error, "high": value + Z * error, "n": n}


def straightness(
    engine: "Engine", labels: np.ndarray, seed: int, prompts: Sequence[str] | None = None
) -> np.ndarray | None:
    """The curvature of paths from new noise to data, (N,), for at most the first 128 labels or prompts."""
    from genflow.evaluation.samples import seeds
    from genflow.maths.rng import SampleRng

    n = min(PATHS, len(labels))
    rng = SampleRng(seeds(seed, n, "way"), "sample", engine.device)
    noise = rng.normal((n, *engine.family.noise_shape))
    found = engine.family.straightness(noise, engine.condition(labels, prompts, rows=range(n)))
    return None if found is None else found.cpu().numpy()


METRIC = Metric(
    measure, needs="model", section="straightness", order=70,
    numbers=(Number("straightness", better="smaller", path=("straightness",)),),
)  # fmt: skip
