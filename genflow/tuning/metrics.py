"""The metrics of a trial: any number that `evaluate` computes, and whether smaller or larger is better.

    fd kid precision recall density coverage agreement     of samples against held-out rows (see `evaluation`)
    bits_per_dim                                           of held-out images; nats of points
    straightness nfe ms ms_alone                           of the sampling paths; of sampling in batches of 64 and of 1
    loss                                                   the mean of the last training losses; only on request
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from genflow.data.shards import Dataset
from genflow.errors import UsageError, nearest
from genflow.evaluation import samples
from genflow.evaluation.features.extractor import FeatureReference
from genflow.evaluation.metric_suite import MetricSuite
from genflow.evaluation.metrics import likelihood
from genflow.evaluation.report.table import QUALITY, SMALLER_IS_BETTER
from genflow.recipe.schema import Evaluate
from genflow.sampling.engine import Engine

METRICS = (*QUALITY, "bits_per_dim", "straightness", "nfe", "ms", "ms_alone", "loss")
MIN_ROWS_TO_SPLIT = 2000  # reference rows; from here on a search and its confirmation use different halves of them
MIN_SAMPLES = 100  # samples at an early rung, unless the last rung has fewer
MAX_LIKELIHOOD_ROWS = 128  # the likelihood is measured on at most so many images
Tell = Callable[..., None]


def check(names: Sequence[str]) -> tuple[str, ...]:
    """Check the names of metrics.

    Raises:
        UsageError: there is no such metric, or a metric is named twice.
    """
    for name in names:
        if name not in METRICS:
            raise UsageError(f"unknown metric {name!r}{nearest(name, list(METRICS))}", f"metrics: {', '.join(METRICS)}")
    if len(set(names)) < len(names) or not names:
        raise UsageError("tune.metric names a metric twice, or none", "--metric fd")
    return tuple(names)


def mode(metric: str) -> str:
    """`min` or `max`."""
    return "min" if metric in SMALLER_IS_BETTER else "max"


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether a value is better than another."""
    return value < than if metric in SMALLER_IS_BETTER else value > than


def samples_at(share: float, samples: int) -> int:
    """The number of samples to draw at a share of the budget: fewer at an early rung, which decides less."""
    return samples if share >= 1 else max(min(samples, MIN_SAMPLES), round(samples * share))


def held_out(judge: FeatureReference, part: int) -> FeatureReference:
    """The features with one half of their reference rows: for a search (0) or for its confirmation (1).

    With fewer than `MIN_ROWS_TO_SPLIT` rows, both use all of them.
    """
    if not is_split(judge):
        return judge
    real = replace(judge.real, reference=judge.real.reference[part::2])
    return replace(judge, real=real, reference=judge.reference[part::2])


def is_split(judge: FeatureReference) -> bool:
    """Whether search and confirmation use different rows."""
    return len(judge.reference) >= MIN_ROWS_TO_SPLIT


def measure(
    engine: Engine, data: Dataset, ruler: MetricSuite, wanted: Sequence[str], count: int, seed: int
) -> dict[str, float]:
    """Measure an engine by the wanted metrics.

    Args:
        engine: of the trial's averaged weights.
        data: the dataset.
        ruler: over the held-out rows.
        wanted: metrics by name.
        count: samples; at most as many as there are real rows to compare with are drawn.
        seed: of the samples' noise.

    Raises:
        UsageError: the family or the data has no such metric.
    """
    judge = ruler.judge
    count = min(count, len(judge.floor))
    asked = samples.labels(data, judge.real, count)
    found: dict[str, float] = {}
    if set(wanted) & {*QUALITY, "nfe", "ms"}:
        drawn = samples.draw(engine, samples.seeds(seed, count), asked, _nobody)
        found |= {"nfe": drawn.nfe, "ms": drawn.ms}
        if set(wanted) & set(QUALITY):
            found |= _quality(drawn, ruler, wanted)
    if "ms_alone" in wanted:
        found["ms_alone"] = samples.milliseconds_alone(engine, int(asked[0]))
    if "bits_per_dim" in wanted:
        told = likelihood.likelihood(engine, data, judge.real, min(MAX_LIKELIHOOD_ROWS, count), seed, _nobody)
        found |= {"bits_per_dim": told["value"]} if told else {}
    if "straightness" in wanted:
        ways = samples.straightness(engine, asked, seed)
        found |= {"straightness": float(ways.mean())} if ways is not None else {}
    if missing := [name for name in wanted if name not in found and name != "loss"]:
        raise UsageError(f"{engine.family.title} on {data.artifact.name} has no {missing[0]}", "--metric fd")
    return {name: float(found[name]) for name in wanted if name != "loss"}


def _quality(drawn: samples.Sample, ruler: MetricSuite, wanted: Sequence[str]) -> dict[str, float]:
    if not np.isfinite(np.asarray(drawn.records, np.float64)).all():
        return dict.fromkeys(QUALITY, float("nan"))
    features, classes = ruler.judge.embed(drawn.records)
    if set(wanted) & {"kid", "precision", "recall", "density", "coverage"}:
        found = {name: metric["value"] for name, metric in ruler.quality(features, drawn.labels).items()}
    else:
        found = {"fd": ruler.distance(features, drawn.labels)["value"]}
    if classes is not None:
        found["agreement"] = float(np.mean(classes == drawn.labels))
    return found


def metric_suite(judge: FeatureReference, part: int, seed: int) -> MetricSuite:
    """The metric suite of a trial; its intervals are not used, so it makes two bootstrap draws only."""
    return MetricSuite(held_out(judge, part), Evaluate(bootstrap=2, seed=seed))


def _nobody(*_: Any) -> None:
    return None
