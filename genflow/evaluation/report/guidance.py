"""Charts of prompt fidelity and quality against guidance, for runs of captions."""

from collections.abc import Mapping, Sequence
from typing import Any

from genflow.evaluation.metrics.base import number, share
from genflow.evaluation.report.charts import Point, Series, chart
from genflow.evaluation.results import fd_name

Row = Mapping[str, Any]
SHOWN = {"r_precision_hard": ("prompt ↑, hard", share), "fd": ("fd", number)}


def charts(rows: Sequence[Row]) -> list[str]:
    """SVG charts of the numbers of `SHOWN`, each over all runs; [] if no run was measured with other guidance."""
    return [drawn for name in SHOWN if (drawn := _chart(rows, name))]


def _chart(rows: Sequence[Row], name: str) -> str:
    label, form = SHOWN[name]
    if name == "fd":
        label = f"{fd_name(_samples(rows), rows[0]['metrics']['fd']['n'])} ↓"
    lines = []
    for index, row in enumerate(rows):
        points = []
        for at in row.get("guidance") or ():
            if found := at.get(name):
                value, low, high = (found[key] for key in ("value", "low", "high"))
                text = f"{row['name']}: {label.rstrip(' ↓')} {form(value)} ({form(low)} to {form(high)})"
                text += f" at guidance {at['guidance']:g}"
                points.append(Point(at["guidance"], value, low, high, text, at["own"]))
        lines.append(Series(row["name"], index, points))
    every = [point for line in lines for point in line.points]
    if not every:
        return ""
    floor = next(at[name]["floor"] for row in rows for at in row.get("guidance") or () if name in at)
    alt = f"{name} against guidance; real data: {form(floor)}. {'. '.join(point.text for point in every)}."
    ticks = sorted({point.x for point in every})
    return chart(lines, x_label="guidance", y_label=label, alt=alt, x_ticks=ticks, floor=floor)


def _samples(rows: Sequence[Row]) -> int:
    """The samples of a point."""
    return next((at["fd"]["n"] for row in rows for at in row.get("guidance") or ()), rows[0]["metrics"]["fd"]["n"])
