"""The types of a trial's results: a stage's measurements, a line of reports.jsonl, a row of a search's results."""

from typing import NotRequired, TypedDict

from genflow.system.documents import Json


class Measured(TypedDict):
    """The measurements of one stage.

    Args:
        values: by metric.
        step: training steps so far; an objective has neither this nor the following fields.
        images: training rows so far.
        seconds: wall-clock seconds of training so far.
        cpu_seconds: CPU seconds of training so far.
        parameters: of all nets.
        samples: how many samples the metrics were measured on.
    """

    values: dict[str, float]
    step: NotRequired[int]
    images: NotRequired[int]
    seconds: NotRequired[float]
    cpu_seconds: NotRequired[float]
    parameters: NotRequired[int]
    samples: NotRequired[int]


class Report(TypedDict, total=False):
    """One line of reports.jsonl: `share` and `params`, then the measurements, or `status` and `why`, or both.

    Args:
        share: the share of the budget at which the trial was measured.
        params: its settings, by key of the recipe.
        status: diverged or failed.
        why: the reason, in one line.
    """

    share: float
    params: Json
    status: str
    why: str
    values: dict[str, float]
    step: int
    images: int
    seconds: float
    cpu_seconds: float
    parameters: int
    samples: int


class Row(Measured):
    """A trial in a search's results: its last report that has values, and its status.

    Args:
        trial: its number.
        params: its settings, by key of the recipe.
        share: the share of the budget at which it was measured last; 0: never.
        status: running, finished, stopped, diverged or failed.
        why: the reason in one line, if it diverged or failed.
        schedule: only of a population's member: {share, params} of each stage.
    """

    trial: int
    params: Json
    share: float
    status: str
    why: NotRequired[str]
    schedule: NotRequired[list[Json]]
