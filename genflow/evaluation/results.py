"""The types of an evaluation's document, metrics.json (schema genflow.evaluate/1; see `measure`)."""

from typing import Any, NotRequired, TypedDict


class MetricValue(TypedDict):
    """A number with its uncertainty.

    Args:
        value: the estimate.
        low: lower end of its 95 % interval.
        high: upper end.
        n: points on either side, which the value depends on.
        features: in which it was measured.
        floor: the same metric of as many real training rows; None: it has none.
    """

    value: float
    low: float
    high: float
    n: int
    features: str
    floor: float | None


class Likelihood(TypedDict):
    """Of held-out rows.

    Args:
        value: the mean over rows.
        low: lower end of its 95 % interval.
        high: upper end.
        unit: bits/dim, or nats for points.
        kind: lower-bound, ode-estimate or exact-dequantized.
        method: in words.
        stderr: of the mean, over rows.
        method_stderr: of the mean, by the method's own noise.
        nfe: network evaluations a row.
        n: rows.
        split: that they are of.
        bars: the same of simple models, by name.
    """

    value: float
    low: float
    high: float
    unit: str
    kind: str
    method: str
    stderr: float
    method_stderr: float
    nfe: int
    n: int
    split: str
    bars: dict[str, float]


class SweepPoint(TypedDict):
    """One way of sampling from the one checkpoint.

    Args:
        steps: of the sampler; None: the family has none.
        sampler: its name; None: the family has none.
        nfe: network evaluations a sample.
        ms_per_image: milliseconds a sample, in batches of 64.
        ms_alone: milliseconds of a sample alone.
        own: whether it is the run's own setting.
        fd: the Fréchet distance.
    """

    steps: int | None
    sampler: str | None
    nfe: int
    ms_per_image: float
    ms_alone: float
    own: bool
    fd: MetricValue


class Speed(TypedDict):
    """How fast samples are drawn.

    Args:
        ms_batch_1: milliseconds of a sample alone.
        ms_batch_64: milliseconds a sample in batches of 64.
        images_per_second: the same, the other way round.
        memory_mb: largest resident memory while drawing.
        device: cpu or cuda.
        threads: of torch.
        load: of the machine in the last minute; None: it does not say.
    """

    ms_batch_1: float
    ms_batch_64: float
    images_per_second: float
    memory_mb: float
    device: str
    threads: int
    load: float | None


class Identity(TypedDict):
    """The run, its dataset, and the machine on which it was measured."""

    run: str
    name: str
    family: str
    title: str
    init: str
    step: int
    options: dict[str, Any]
    training: dict[str, Any]
    dataset: str
    dataset_name: str
    fingerprint: str
    machine: str
    cores: int
    versions: dict[str, str]


class Evaluation(Identity):
    """The document of one measured run. `path` and `cached` are added when it is returned; the file lacks them."""

    schema: str
    evaluation: str
    reference: dict[str, Any]
    features: dict[str, Any]
    samples: int
    seed: int
    evaluate: dict[str, Any]
    sample: dict[str, Any]
    nfe: int
    metrics: dict[str, MetricValue]
    likelihood: Likelihood | None
    straightness: dict[str, Any] | None
    memorization: dict[str, MetricValue] | None
    modes: dict[str, Any] | None
    classes: dict[str, Any] | None
    speed: Speed
    sweep: list[SweepPoint]
    seconds: float
    path: NotRequired[str]
    cached: NotRequired[bool]
