"""The types of an evaluation's document, metrics.json (schema genflow.evaluate/1; see `evaluate`)."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NotRequired, TypedDict

from genflow.errors import DataError
from genflow.storage.manifest import warn
from genflow.storage.store import Artifact, Store

METRICS = "metrics.json"
FAR = 10  # multiple of the floor of fd above which samples are hardly recognisable


def documents(store: Store, newest: int = 0) -> Iterator[tuple[Artifact, dict[str, Any]]]:
    """The finished evaluations of a store with their documents, oldest first. One line on stderr names a damaged one.

    Args:
        store: holds the evaluations.
        newest: read only so many; 0: all.
    """
    for artifact in store.artifacts("evaluations")[-newest:]:
        try:
            text = artifact.file(METRICS).read_text(encoding="utf-8")
        except DataError as error:
            warn(error)
        else:
            yield artifact, json.loads(text)


def floors(document: Mapping[str, Any]) -> float | None:
    """The fd as a multiple of the fd of real pictures, which can be compared between datasets."""
    fd = document["metrics"]["fd"]
    return fd["value"] / fd["floor"] if fd.get("floor") else None


def headlines(store: Store) -> dict[str, dict[str, Any]]:
    """The evaluation of each run that holds its figures wherever one is shown, by run.

    It is the one with the run's own way of sampling and with the most samples, for fd depends on both; of equal ones
    the newest. The order is that in which they were made.
    """
    found: dict[str, dict[str, Any]] = {}
    for _, document in documents(store):
        known = found.get(document["run"])
        if known is None or _weight(document) >= _weight(known):
            found.pop(document["run"], None)
            found[document["run"]] = document
    return found


def _weight(document: dict[str, Any]) -> tuple[bool, int]:
    return not document.get("sample"), document.get("samples", 0)


def fd_name(n: int, samples: int) -> str:
    """What a Fréchet distance is called: `fd` only with all samples of its evaluation, for it depends on their number.

    Args:
        n: number of samples that it was measured on.
        samples: that of the evaluation, on which the run's own fd was measured.
    """
    return "fd" if n == samples else f"fd of {n:,} samples"


class MetricValue(TypedDict):
    """A number with its uncertainty.

    Args:
        value: the estimate.
        low: lower end of its 95 % interval.
        high: upper end.
        n: number of samples; the value depends on it.
        features: name of the features that it was measured on.
        floor: the same metric of as many real training rows; None if there is none.
        chance: the value of a guess; absent if one cannot guess.
    """

    value: float
    low: float
    high: float
    n: int
    features: str
    floor: float | None
    chance: NotRequired[float]


class Likelihood(TypedDict):
    """The likelihood of held-out rows.

    Args:
        value: the mean over rows.
        low: lower end of its 95 % interval.
        high: upper end.
        unit: bits/dim, or nats for points.
        kind: lower-bound, ode-estimate or exact-dequantized.
        method: name of the method.
        stderr: standard error of the mean over rows.
        method_stderr: standard error of the mean caused by the method's own randomness.
        nfe: network evaluations per row.
        n: number of rows.
        split: the split that the rows belong to.
        bars: the likelihood of simple baseline models, by name.
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
    """One setting of sampling from a checkpoint.

    Args:
        steps: steps of the sampler; None if the family has none.
        sampler: name of the sampler; None if the family has none.
        nfe: network evaluations per sample.
        ms_per_image: milliseconds per sample, in batches of 64.
        ms_alone: milliseconds per sample, in a batch of 1.
        own: whether it is the run's own setting.
        fd: the Fréchet distance.
        guidance: the guidance scale, of a run of captions.
        r_precision: of a run of captions, as `r_precision_hard` (see `metrics/r_precision.py`).
    """

    steps: int | None
    sampler: str | None
    nfe: int
    ms_per_image: float
    ms_alone: float
    own: bool
    fd: MetricValue
    guidance: NotRequired[float]
    r_precision: NotRequired[MetricValue]
    r_precision_hard: NotRequired[MetricValue]


class Speed(TypedDict):
    """The speed of sampling.

    Args:
        ms_batch_1: milliseconds per sample, in a batch of 1.
        ms_batch_64: milliseconds per sample, in batches of 64.
        images_per_second: samples per second, in batches of 64.
        memory_mb: peak resident memory while sampling.
        device: cpu or cuda.
        threads: number of threads of torch.
        load: load average of the machine over the last minute; None if it is not available.
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
    reconstructs: bool
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
    """The document of one measured run; `path` and `cached` are not in the file and are added when it is returned."""

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
    guidance: list[SweepPoint] | None
    prompts: dict[str, Any] | None
    seconds: float
    path: NotRequired[str]
    cached: NotRequired[bool]
