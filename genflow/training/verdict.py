"""How a training went: the passes over the data, and whether its loss was still falling at the end.

The loss is the one on held-out rows with fixed noise. So the difference between two moments is paired, and its standard
error is that of a mean over groups of rows. Without held-out rows it is the loss of the training steps, and the fall is
the slope of a line through the last quarter of them.
"""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

from genflow.training.forecast import FEW, in_words
from genflow.training.history import Moment, mean

QUARTER = 0.8  # the last quarter begins at the last moment before this share: at 7/9
SURE = 2.0  # standard errors
MUCH = 0.05  # of the whole fall since the first moment: less than this counts as flat
STEEP = 0.1  # of the held-out loss: a larger fall in the last quarter is that of a training that has only begun
DIFFERENT = 1.25  # ratio of the CPU times of two runs, above which their budgets differ
NAMED = 4  # runs that a sentence lists
LEAST_POINTS = 8  # training losses in the last quarter, for a slope


class Trend(TypedDict):
    """The loss in the last quarter of a training.

    Args:
        loss: `held-out` or `training`.
        before, after: the loss at the start and at the end of the last quarter.
        stderr: the standard error of their difference.
        falling: whether the loss fell by more than two standard errors, and by more than 5 % of its fall since the
            first moment; None: two standard errors are more than that share.
    """

    loss: str
    before: float
    after: float
    stderr: float
    falling: bool | None


def of_history(history: Sequence[Moment]) -> Trend | None:
    """The trend of the held-out loss; None if there are too few moments."""
    if len(history) < 3:
        return None
    last = history[-1]
    earlier = [moment for moment in history if moment["position"] <= QUARTER * last["position"]]
    if not earlier:
        return None
    before = earlier[-1]
    falls = [a - b for a, b in zip(before["losses"], last["losses"], strict=True)]
    fall, groups = mean(falls), len(falls)
    spread = math.sqrt(sum((each - fall) ** 2 for each in falls) / max(1, groups - 1))
    whole = mean(history[0]["losses"]) - mean(last["losses"])
    return _trend("held-out", mean(before["losses"]), mean(last["losses"]), spread / math.sqrt(groups), whole)


def of_losses(points: Sequence[tuple[int, float]]) -> Trend | None:
    """The trend of the training loss, as (step, loss); None if the last quarter has too few."""
    points = [(step, loss) for step, loss in points if math.isfinite(loss)]
    last = [point for point in points if point[0] > 0.75 * points[-1][0]] if points else []
    if len(last) < LEAST_POINTS:
        return None
    x, y = [step for step, _ in last], [loss for _, loss in last]
    centre, level = mean([float(step) for step in x]), mean(y)
    spread = sum((step - centre) ** 2 for step in x)
    slope = sum((step - centre) * (loss - level) for step, loss in last) / spread
    residual = sum((loss - level - slope * (step - centre)) ** 2 for step, loss in last) / (len(last) - 2)
    width = x[-1] - x[0]
    stderr = math.sqrt(residual / spread) * width
    before, after = level + slope * (x[0] - centre), level + slope * (x[-1] - centre)
    first = [loss for _, loss in points[: max(1, len(points) // 9)]]
    return _trend("training", before, after, stderr, mean(first) - after)


def _trend(loss: str, before: float, after: float, stderr: float, whole: float) -> Trend:
    fall = before - after
    falling: bool | None = fall > SURE * stderr and fall > MUCH * whole
    if fall > 0 and not falling and SURE * stderr > MUCH * whole:
        falling = None
    return {"loss": loss, "before": before, "after": after, "stderr": stderr, "falling": falling}


def in_a_line(trend: Trend) -> str:
    """`held-out 0.2310 → 0.2243 (± 0.0011) in the last quarter: still falling`."""
    change = f"{trend['loss']} {trend['before']:.4g} → {trend['after']:.4g} (± {trend['stderr']:.2g})"
    fall, sure = trend["before"] - trend["after"], SURE * trend["stderr"]
    little = f"falling, by less than {MUCH:.0%} of its whole fall"
    state = "still falling" if trend["falling"] else little if fall > sure else "rising" if -fall > sure else "flat"
    state = "too uncertain to tell whether it still falls" if trend["falling"] is None else state
    return f"{change} in the last quarter: {state}"


def passes_of(meta: dict[str, Any]) -> float | None:
    """The passes over the data of a run, and of the runs that it continues; None if they are unknown."""
    passes: float | None = meta.get("passes")
    return None if passes is None else passes + (meta.get("passes_before") or 0.0)


def is_barely_trained(meta: dict[str, Any]) -> bool:
    """Whether a run made few passes over its data, and its loss is not known to have stopped falling; or fell steeply.

    On little data a few steps are many passes, so the loss decides there.

    Args:
        meta: of the run's manifest.
    """
    passes, trend = passes_of(meta), meta.get("trend")
    few = passes is not None and passes < FEW and (trend is None or trend["falling"] is not False)
    return few or _steepness(meta) > STEEP


def _steepness(meta: dict[str, Any]) -> float:
    """The fall of the held-out loss in the last quarter, as a share of the loss; 0 if it is unknown or not certain."""
    trend = meta.get("trend")
    if not trend or not trend["falling"] or trend["loss"] != "held-out" or not trend["before"]:
        return 0.0
    return float(trend["before"] - trend["after"]) / abs(trend["before"])


def cautions(runs: dict[str, dict[str, Any]], *, budgets: bool = True) -> list[str]:
    """What a comparison of runs says first: budgets that differ, and models that are barely trained.

    Args:
        runs: the meta of the runs' manifests by the names that the comparison uses.
        budgets: whether to compare the budgets.

    Returns:
        At most two sentences.
    """
    return [sentence for sentence in (_budgets(runs) if budgets else "", _barely(runs)) if sentence]


def _budgets(runs: dict[str, dict[str, Any]]) -> str:
    seconds = {name: float(meta["cpu_seconds"]) for name, meta in runs.items() if meta.get("cpu_seconds")}
    if len(seconds) < 2 or max(seconds.values()) <= DIFFERENT * min(seconds.values()):
        return ""
    least, most = min(seconds, key=seconds.__getitem__), max(seconds, key=seconds.__getitem__)
    times = seconds[most] / seconds[least]
    return (
        f"The budgets differ by a factor of {times:.1f}: {most} trained for {_minutes(seconds[most])} of CPU time, and "
        f"{least} for {_minutes(seconds[least])}."
    )


def _barely(runs: dict[str, dict[str, Any]]) -> str:
    barely = {name: meta for name, meta in runs.items() if is_barely_trained(meta)}
    if not barely:
        return ""
    listed = ", ".join(f"{name} ({_how_little(meta)})" for name, meta in list(barely.items())[:NAMED])
    more = f" and {len(barely) - NAMED} more" if len(barely) > NAMED else ""
    who = "All models are barely trained" if len(barely) == len(runs) > 1 else "Barely trained"
    if any(_steepness(meta) > STEEP for meta in barely.values()):
        return f"{who}: {listed}{more}."
    return f"{who}: {listed}{more}; fewer than {FEW} passes over the data, and no loss that has stopped falling."


def _how_little(meta: dict[str, Any]) -> str:
    """The passes of a run, and the fall of its loss in the last quarter if it is steep."""
    steep = _steepness(meta)
    fall = f"its held-out loss fell by {steep:.0%} in the last quarter" if steep > STEEP else ""
    passes = passes_of(meta)
    return ", ".join(text for text in ("" if passes is None else in_words(passes), fall) if text)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
