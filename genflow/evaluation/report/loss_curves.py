"""Training losses of a run: a chart, and warnings about curves that indicate a problem."""

import math

import numpy as np

from genflow.evaluation.report import charts, table
from genflow.evaluation.report.charts import Point, Series
from genflow.storage.store import Store
from genflow.tracking.journal import curves, journal_path

CURVE_POINTS = 160  # largest number of points of a drawn curve
MIN_POINTS = 20  # shorter curves get no warnings
FALLING, RISEN, SPIKE = 0.03, 0.10, 5.0
Curve = list[tuple[int, float]]


def losses(store: Store, run: str) -> dict[str, Curve]:
    """The training losses of a run by name, as (step, loss); {} if its journal no longer exists."""
    path = journal_path(store.root, run)
    found = curves(path) if path.exists() else {}
    return {name: pairs for name, pairs in found.items() if name.startswith("train/loss")}


def chart(found: dict[str, Curve], name: str, index: int, batch: int) -> str:
    """A chart of the losses of one run; empty if there are none.

    Args:
        found: from `losses`.
        name: the run's name.
        index: selects the colour of the first line.
        batch: the global batch size; the x axis counts training images.
    """
    lines = []
    for offset, (title, pairs) in enumerate(found.items()):
        thin = downsample([(step * batch, value) for step, value in pairs if math.isfinite(value)])
        points = [Point(x, value, value, value) for x, value in thin]
        lines.append(Series(title, index + offset, points, marks=False))
    if not any(line.points for line in lines):
        return ""
    ends = [f"{line.name} ends at {table.number(line.points[-1].y)}" for line in lines if line.points]
    alt = f"Training loss of {name}; {', '.join(ends)}"
    return charts.chart(lines, x_label="training images seen", y_label="loss", alt=alt, from_zero=False)


def downsample(pairs: Curve) -> list[tuple[float, float]]:
    """A curve of at most 160 points, each the mean of a group of consecutive points: (x, y)."""
    size = -(-len(pairs) // CURVE_POINTS) or 1
    groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def warnings(found: dict[str, Curve]) -> list[str]:
    """Warnings about the losses of a run, as sentences. For two players, only values that are not finite are reported.

    The curve is divided into ten parts. "Decrease" is the difference between the first and the lowest mean of a part.

    still decreasing   the mean of the last part is below that of the previous part by more than 3 % of the decrease,
                       and by more than twice the standard error of the difference
    increased again    the mean of the last part is above the lowest mean by more than 10 % of the decrease, and by more
                       than twice the standard error of the difference
    spikes             in the second half, the largest value exceeds the median by more than 5 times the distance of the
                       90th percentile from the median
    """
    messages = []
    for title, pairs in found.items():
        name = "the loss" if len(found) == 1 else title.removeprefix("train/")
        values = np.array([value for _, value in pairs])
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            messages.append(f"{name} was NaN or infinite in {bad} of {len(values)} records")
        elif len(found) == 1 and len(values) >= MIN_POINTS:
            messages += _warnings(name, values)
    return [f"{words[0].upper()}{words[1:]}." for words in messages]


def _warnings(name: str, values: np.ndarray) -> list[str]:
    parts = np.array_split(values, 10)
    means = np.array([part.mean() for part in parts])
    errors = np.array([part.std(ddof=1) / math.sqrt(len(part)) for part in parts])
    fell = means[0] - means.min()
    lowest, messages = int(means.argmin()), []
    if means[-2] - means[-1] > max(FALLING * fell, 2 * math.hypot(errors[-1], errors[-2])):
        messages.append(f"{name} was still decreasing at the end: longer training may improve the model")
    if lowest < 9 and means[-1] - means[lowest] > max(RISEN * fell, 2 * math.hypot(errors[-1], errors[lowest])):
        messages.append(f"{name} increased again after {10 * (lowest + 1)} % of the training")
    late = values[len(values) // 2 :]
    middle, high = np.quantile(late, (0.5, 0.9))
    if high > middle and late.max() - middle > SPIKE * (high - middle):
        top = table.number(float(late.max()))
        messages.append(f"{name} has spikes in the second half of the training, up to {top}")
    return messages
