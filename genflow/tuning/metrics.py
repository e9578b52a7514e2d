"""What a trial is measured by: numbers of `evaluation/metrics`, and which way is better.

    fd kid precision recall density coverage agreement     of samples against held-out rows
    bits_per_dim                                           of held-out pictures; nats of points
    straightness                                           of the family's way
    nfe ms ms_alone                                        of sampling by 64 and alone
    loss                                                   the last training losses' mean; only if asked for by name
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from genflow.data.shards import Dataset
from genflow.errors import UsageError, nearest
from genflow.evaluation import metrics, samples
from genflow.evaluation.features.extractor import FeatureReference
from genflow.evaluation.metric_suite import MetricSuite
from genflow.evaluation.metrics.base import Metric, Model, Samples
from genflow.recipe.schema import Evaluate
from genflow.sampling.engine import Engine
from genflow.storage.store import Store

HALVES = 2000  # reference rows from which on the search and its confirmation are measured against different halves
FEWEST = 100  # samples at an early rung, if the last has so many
LIKELY = 128  # pictures whose likelihood is measured at the most
Tell = Callable[..., None]


def names() -> tuple[str, ...]:
    """What a search can ask for."""
    return (*(name for name, number in metrics.numbers().items() if number.tune), *metrics.COSTS)


def known(wanted: Sequence[str]) -> tuple[str, ...]:
    """The metrics by name, checked.

    Raises:
        UsageError: there is no such metric, or one stands twice.
    """
    for name in wanted:
        if name not in names():
            raise UsageError(f"unknown metric {name!r}{nearest(name, list(names()))}", f"metrics: {', '.join(names())}")
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
    """How many samples are drawn after a share of the budget: fewer where they decide less."""
    return samples if share >= 1 else max(min(samples, FEWEST), round(samples * share))


def held_out(judge: FeatureReference, part: int) -> FeatureReference:
    """The judge with the half of its reference that a search (0) or its confirmation (1) is measured against.

    Where there are too few rows for two halves, both are measured against all of them.
    """
    if not are_halves(judge):
        return judge
    real = replace(judge.real, reference=judge.real.reference[part::2])
    return replace(judge, real=real, reference=judge.reference[part::2])


def are_halves(judge: FeatureReference) -> bool:
    """Whether search and confirmation have rows of their own."""
    return len(judge.reference) >= HALVES


def measure(
    store: Store, engine: Engine, data: Dataset, ruler: MetricSuite, wanted: Sequence[str], count: int, seed: int
) -> dict[str, float]:
    """What is wanted of an engine.

    Args:
        store: where an artifact that a metric needs is kept.
        engine: of the trial's averaged weights.
        data: the dataset.
        ruler: over the held-out rows.
        wanted: metrics by name.
        count: samples, at most as many as there are real rows to compare them with.
        seed: of the samples' noise.

    Raises:
        UsageError: the family or the data has no such number.
    """
    judge = ruler.extractor
    count = min(count, len(judge.floor))
    asked = samples.labels(data, judge.real, count)
    options = ruler.options.model_copy(update={"seed": seed, "likelihood": min(LIKELY, count)})
    model = Model(store, engine, data, judge, options, asked, _nobody, _nobody)
    needed = [metric for metric in metrics.every() if {number.name for number in metric.numbers} & set(wanted)]
    of_samples = [metric for metric in needed if metric.needs != "model"]
    found: dict[str, float] = {}
    if of_samples or set(wanted) & {"nfe", "ms"}:
        drawn = samples.draw(engine, samples.seeds(seed, count), asked, _nobody)
        found |= {"nfe": drawn.nfe, "ms": drawn.ms}
        if of_samples:
            found |= _of_samples(of_samples, drawn, ruler, model)
    if "ms_alone" in wanted:
        found["ms_alone"] = samples.single_sample_ms(engine, int(asked[0]))
    for metric in needed:
        if metric.needs == "model":
            found |= _values(metric, metric.measure(model), judge)
    if missing := [name for name in wanted if name not in found and name != "loss"]:
        raise UsageError(f"{engine.family.title} on {data.artifact.name} has no {missing[0]}", "--metric fd")
    return {name: float(found[name]) for name in wanted if name != "loss"}


def _of_samples(
    needed: Sequence[Metric], drawn: samples.Sample, ruler: MetricSuite, model: Model
) -> dict[str, float]:
    if not np.isfinite(np.asarray(drawn.records, np.float64)).all():
        return {number.name: float("nan") for metric in needed for number in metric.numbers}
    features, classes = ruler.extractor.embed(drawn.records)
    given = Samples(**vars(model), records=drawn.records, features=features, classes=classes)
    found: dict[str, float] = {}
    for metric in needed:
        suits = metric.needs == "features"
        answer = ruler.measure_without_floor(metric, features, drawn.labels) if suits else metric.measure(given)
        found |= _values(metric, answer, ruler.extractor)
    return found


def _values(metric: Metric, answer: Any, judge: FeatureReference) -> dict[str, float]:
    """The numbers that a metric's answer holds, by name."""
    if not metric.section:
        answer = {name: reading.metric(judge) for name, reading in answer.items()}
    row = {metric.section or "metrics": answer}
    told = {number.name: number.get(row) for number in metric.numbers}
    return {name: metric["value"] for name, metric in told.items() if metric}


def ruler_of(judge: FeatureReference, part: int, seed: int) -> MetricSuite:
    """What measures a trial; its intervals are not asked for, so they are made from two halves only."""
    return MetricSuite(held_out(judge, part), Evaluate(bootstrap=2, seed=seed))


def _nobody(*_: Any) -> None:
    return None
