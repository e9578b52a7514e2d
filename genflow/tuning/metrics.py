"""The metrics of a trial: any number of `evaluation/metrics`, and whether smaller or larger is better.

    fd kid precision recall density coverage agreement     of samples against held-out rows (see `evaluation`)
    r_precision, _hard, _unseen, _unseen_hard              of samples and their captions
    bits_per_dim                                           of held-out images; nats of points
    straightness nfe ms ms_alone                           of the sampling paths; of sampling in batches of 64 and of 1
    loss                                                   the mean of the last training losses; only on request
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from genflow.data.shards import Dataset
from genflow.errors import UsageError, similar
from genflow.evaluation import metrics, samples
from genflow.evaluation.features.extractor import FeatureReference
from genflow.evaluation.metric_suite import MetricSuite
from genflow.evaluation.metrics.base import Metric, Model, Samples
from genflow.recipe.schema import Evaluate
from genflow.sampling.engine import Engine
from genflow.storage.store import Store

MIN_ROWS_TO_SPLIT = 2000  # reference rows; from here on a search and its confirmation use different halves of them
MIN_SAMPLES = 100  # samples at an early rung, unless the last rung has fewer
MAX_LIKELIHOOD_ROWS = 128  # the likelihood is measured on at most so many images
Tell = Callable[..., None]


def names() -> tuple[str, ...]:
    """The metrics that a search can use."""
    return (*(name for name, number in metrics.numbers().items() if number.tune), *metrics.COSTS)


def check(wanted: Sequence[str]) -> tuple[str, ...]:
    """Check the names of metrics.

    Raises:
        UsageError: there is no such metric, or a metric is named twice.
    """
    for name in wanted:
        if name not in names():
            raise UsageError(f"unknown metric {name!r}{similar(name, list(names()))}", f"metrics: {', '.join(names())}")
    if len(set(wanted)) < len(wanted) or not wanted:
        raise UsageError("tune.metric names a metric twice, or none", "--metric fd")
    return tuple(wanted)


def mode(metric: str) -> str:
    """`min` or `max`."""
    return "min" if metrics.smaller_is_better(metric) else "max"


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether a value is better than another."""
    return value < than if metrics.smaller_is_better(metric) else value > than


def samples_at(share: float, samples: int) -> int:
    """The number of samples to draw at a share of the budget: fewer at an early rung, which decides less."""
    return samples if share >= 1 else max(min(samples, MIN_SAMPLES), round(samples * share))


def held_out(extractor: FeatureReference, part: int) -> FeatureReference:
    """The features with one half of their reference rows: for a search (0) or for its confirmation (1).

    With fewer than `MIN_ROWS_TO_SPLIT` rows, both use all of them.
    """
    if not is_split(extractor):
        return extractor
    real = replace(extractor.real, reference=extractor.real.reference[part::2])
    return replace(extractor, real=real, reference=extractor.reference[part::2])


def is_split(extractor: FeatureReference) -> bool:
    """Whether search and confirmation use different rows."""
    return len(extractor.reference) >= MIN_ROWS_TO_SPLIT


def measure(
    store: Store, engine: Engine, data: Dataset, suite: MetricSuite, wanted: Sequence[str], count: int, seed: int
) -> dict[str, float]:
    """Measure an engine by the wanted metrics.

    Args:
        store: where an artifact that a metric needs is kept.
        engine: of the trial's averaged weights.
        data: the dataset.
        suite: the metrics against the held-out rows.
        wanted: metrics by name.
        count: samples; at most as many as there are real rows to compare with are drawn.
        seed: of the samples' noise.

    Raises:
        UsageError: the family or the data has no such metric.
    """
    extractor = suite.extractor
    count = min(count, len(extractor.floor))
    asked = samples.labels(data, extractor.real, count)
    options = suite.options.model_copy(update={"seed": seed, "likelihood": min(MAX_LIKELIHOOD_ROWS, count)})
    prompts = samples.prompts(engine, data, extractor.real, count)
    model = Model(store, engine, data, extractor, options, asked, _ignore, _ignore, prompts)
    needed = [metric for metric in metrics.every() if {number.name for number in metric.numbers} & set(wanted)]
    of_samples = [metric for metric in needed if metric.needs != "model"]
    found: dict[str, float] = {}
    if of_samples or set(wanted) & {"nfe", "ms"}:
        measured = samples.measured(engine, data)
        drawn = samples.draw(measured, samples.seeds_of(measured, extractor.real, seed, count), asked, _ignore, prompts)
        found |= {"nfe": drawn.nfe, "ms": drawn.ms}
        if of_samples:
            found |= _of_samples(of_samples, drawn, suite, model)
    if "ms_alone" in wanted:
        found["ms_alone"] = samples.single_sample_ms(engine, int(asked[0]))
    for metric in needed:
        if metric.needs == "model":
            found |= _values(metric, metric.measure(model), extractor)
    if missing := [name for name in wanted if name not in found and name != "loss"]:
        raise UsageError(f"{engine.family.title} on {data.artifact.name} has no {missing[0]}", "--metric fd")
    return {name: float(found[name]) for name in wanted if name != "loss"}


def _of_samples(
    needed: Sequence[Metric], drawn: samples.Sample, suite: MetricSuite, model: Model
) -> dict[str, float]:
    if not np.isfinite(np.asarray(drawn.records, np.float64)).all():
        return {number.name: float("nan") for metric in needed for number in metric.numbers}
    features, classes = suite.extractor.embed(drawn.records)
    given = Samples(**vars(model), records=drawn.records, features=features, classes=classes)
    found: dict[str, float] = {}
    for metric in needed:
        suits = metric.needs == "features"
        answer = suite.measure_without_floor(metric, features, drawn.labels) if suits else metric.measure(given)
        found |= _values(metric, answer, suite.extractor)
    return found


def _values(metric: Metric, answer: Any, extractor: FeatureReference) -> dict[str, float]:
    """The numbers in a metric's answer, by name."""
    if not metric.section:
        answer = {name: reading.metric(extractor) for name, reading in answer.items()}
    row = {metric.section or "metrics": answer}
    values = {number.name: number.get(row) for number in metric.numbers}
    return {name: metric["value"] for name, metric in values.items() if metric}


def metric_suite(extractor: FeatureReference, part: int, seed: int) -> MetricSuite:
    """The metric suite of a trial; its intervals are not used, so it makes two bootstrap draws only."""
    return MetricSuite(held_out(extractor, part), Evaluate(bootstrap=2, seed=seed))


def _ignore(*_: Any) -> None:
    return None
