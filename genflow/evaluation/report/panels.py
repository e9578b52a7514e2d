"""The measurements of runs as dot plots: one panel for each number, with a row for each run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from genflow.evaluation.metrics.base import Column, number, share
from genflow.evaluation.metrics.likelihood import likelihood_text
from genflow.evaluation.report import dots
from genflow.evaluation.report.dots import Dot

Row = Mapping[str, Any]  # an Evaluation
Quantity = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """A dot plot with its heading.

    Args:
        title: the name of the number, with an arrow in the better direction.
        note: its unit, or what it is.
        real: the value of real data as text; empty if there is none.
        drawn: the plot as SVG.
        real_name: what the value of `real` belongs to.
    """

    title: str
    note: str
    real: str
    drawn: str
    real_name: str = "real data"


def of_rows(rows: Sequence[Row], columns: Sequence[Column], best: Mapping[str, set[str]], distance: str) -> list[Panel]:
    """The panels of a comparison: fd, the numbers that metrics declare for the report, likelihood and cost.

    Args:
        rows: `genflow.evaluate/1` documents with unique names.
        columns: of the report; those without a number have no panel.
        best: the runs to mark, by number.
        distance: what the Fréchet distance is called.
    """
    found = [_panel(f"{distance} ↓", "", rows, lambda row: row["metrics"]["fd"], best.get("fd", set()))]
    for column in columns:
        if source := column.source:
            title, _, note = column.head.removesuffix("</small>").partition("<small>")
            marked = best.get(column.best, set())
            found.append(_panel(title, note, rows, source.get, marked, column.form, column.scale))
    unit = next((row["likelihood"]["unit"] for row in rows if row.get("likelihood")), "")
    found.append(_panel(f"{unit} ↓", "", rows, lambda row: row.get("likelihood"), set(),
                        text=lambda row: likelihood_text(row.get("likelihood")).partition(" ±")[0]))  # fmt: skip
    for name, size in (("ms_batch_64", 64), ("ms_batch_1", 1)):
        get = partial(_milliseconds, name)
        found.append(_panel("ms per sample ↓", f"in a batch of {size}", rows, get, best.get(name, set())))
    return [panel for panel in found if panel.drawn]


def _milliseconds(name: str, row: Row) -> Quantity:
    value = row["speed"][name]
    return {"value": value, "low": value, "high": value}


def _panel(
    title: str, note: str, rows: Sequence[Row], get: Callable[[Row], Quantity | None], best: set[str],
    form: Callable[[float], str] = number, scale: float = 1.0, text: Callable[[Row], str] | None = None,
) -> Panel:  # fmt: skip
    found = [(row, quantity) for row in rows if (quantity := get(row))]
    drawn = [
        Dot(
            row["name"], rows.index(row), scale * at["value"], scale * at["low"], scale * at["high"],
            text(row) if text else form(scale * at["value"]), row["run"] in best, _interval(at, form, scale),
        )
        for row, at in found
    ]  # fmt: skip
    floor = next((at["floor"] for _, at in found if at.get("floor") is not None), None)
    real = None if floor is None else scale * floor
    alt = f"{title.rstrip(' ↓↑')} {note}".strip()
    return Panel(title, note, "" if real is None else form(real), dots.plot(drawn, alt, real, log=form is not share))


def _interval(at: Quantity, form: Callable[[float], str], scale: float) -> str:
    if at["low"] == at["high"]:
        return ""
    return f"{form(scale * at['low'])} to {form(scale * at['high'])}"
