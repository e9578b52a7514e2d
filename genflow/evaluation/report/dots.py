"""Dot plots as inline SVG: one line per run with its value and interval, on an axis that all share.

A vertical line is the value of real data. The value is written at the end of each line, so that a reader needs no
tooltip; the name is broken into two lines if it is long. Colours come from the page's style sheet, as in `charts`.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from genflow.evaluation.report.charts import COLOURS, Axis, short

WIDTH = 360  # of a plot, if nothing else is asked for
LINE, TWO_LINES = 22, 30  # height of a row in pixels, with a name of one and of two lines
LETTER, WIDE = 6.9, 9.5  # pixels of a letter, and of a capital or a sign, in the widest font of a system
NAME = 21  # letters of a line of a name, at most
SCALE = 22  # height of the axis below the rows
LOG_FROM = 8.0  # an axis is logarithmic if its largest value is so many times its smallest


@dataclass(frozen=True)
class Dot:
    """A row of a dot plot.

    Args:
        name: the name at its start.
        index: selects the colour; a run has the same index everywhere. None: a number that no run has.
        value: its value; None: the row has only its text.
        low: lower end of the interval; equal to the value if there is none.
        high: upper end; None if it is open.
        text: the value as text, at the end of the row.
        best: whether it is marked as the best one.
        about: more about it, for the tooltip.
    """

    name: str
    index: int | None
    value: float | None
    low: float | None
    high: float | None
    text: str
    best: bool = False
    about: str = ""


def plot(
    dots: Sequence[Dot], alt: str, real: float | None = None, *, axis: bool = True, width: int = WIDTH, log: bool = True
) -> str:
    """A dot plot as SVG; empty if no row has a value.

    Args:
        dots: the rows, from top to bottom.
        alt: description for screen readers; the values are added to it.
        real: the value of real data.
        axis: whether there are numbers below the rows.
        width: in pixels; the page scales the plot, and with it the letters.
        log: whether the axis may be logarithmic, which shares of a whole are not.
    """
    have = [dot for dot in dots if _finite(dot.value)]
    if not have:
        return ""
    letters = NAME if width >= WIDTH else NAME - 4
    names = [_wrapped(dot.name, letters) for dot in dots]
    left = max(_pixels(line) for lines in names for line in lines) + 10
    right = width - max(_pixels(dot.text) for dot in dots) - 16
    scale = _scale(have, real, left + 6, right - 6, log)
    parts, top = [], 4.0
    heights = [LINE if len(lines) == 1 else TWO_LINES for lines in names]
    bottom = top + sum(heights)
    ticks = [tick for tick in scale.ticks() if left <= scale.at(tick) <= right]
    parts += [_vertical("grid", scale.at(tick), top, bottom) for tick in ticks]
    if real is not None and _finite(real):
        parts.append(_vertical("truth-line", scale.at(real), top - 2, bottom + 2))
    for dot, lines, height in zip(dots, names, heights, strict=True):
        parts.append(_row(dot, lines, scale, top + height / 2, left, right, width))
        top += height
    if axis:
        parts += _labels(ticks, scale, bottom + 15)
    high = round(bottom + (SCALE if axis else 4))
    said = ". ".join(_said(dot) for dot in dots)
    real_said = f"; real data: {short(real)}" if real is not None else ""
    label = escape(f"{alt}{real_said}. {said}.")
    body = "".join(parts)
    return f'<svg class="dots" viewBox="0 0 {width} {high}" role="img" aria-label="{label}">{body}</svg>'


def _pixels(text: str) -> float:
    """The width of a text of 12 pixels, at most."""
    return sum(LETTER if letter.islower() or letter in " .,-_()0123456789" else WIDE for letter in text)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _wrapped(name: str, letters: int) -> list[str]:
    """The name in one or two lines, cut if it is longer."""
    lines = textwrap.wrap(name, letters, break_on_hyphens=False) or [""]
    return lines if len(lines) <= 2 else [lines[0], f"{lines[1][: letters - 1]}…"]


def _scale(have: Sequence[Dot], real: float | None, start: float, end: float, log: bool) -> Axis:
    """A logarithmic axis if the values span more than a factor of 8; else from 0, unless all values are far from it.

    Intervals that are much wider than the values differ are cut, so that the values can be told apart.
    """
    values = [dot.value for dot in have if dot.value is not None]
    values += [real] if real is not None and _finite(real) else []
    least, most = min(values), max(values)
    ends = [end for dot in have for end in (dot.low, dot.high) if end is not None and math.isfinite(end)]
    if log and least > 0 and most > LOG_FROM * least:
        positive = [end for end in ends if end > 0]
        low, high = min([least, *positive]), max([most, *positive])
        return Axis(max(low, least / 4) / 1.15, min(high, most * 4) * 1.15, start, end, True)
    span = max(most - least, 0.1 * abs(most), 1e-9)
    low, high = max(min([least, *ends]), least - 2 * span), min(max([most, *ends]), most + 2 * span)
    if 0 <= low < 0.6 * high:  # near enough to show the zero
        low = 0.0
    edge = 0.0 if low == 0 else 0.06 * (high - low)
    return Axis(low - edge, high, start, end, False)


def _vertical(kind: str, x: float, top: float, bottom: float) -> str:
    return f'<line class="{kind}" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'


def _row(dot: Dot, lines: list[str], scale: Axis, y: float, left: float, right: float, width: int) -> str:
    style = f'style="--c:var(--{"soft" if dot.index is None else f"c{dot.index % COLOURS}"})"'
    first = y + 4 if len(lines) == 1 else y - 2.5
    name = "".join(f'<tspan x="{left - 8:.1f}" y="{first + 13 * i:.1f}">{escape(line)}</tspan>'
                   for i, line in enumerate(lines))  # fmt: skip
    bold = ' class="best"' if dot.best else ""
    parts = [f'<text text-anchor="end">{name}</text>',
             f'<text{bold} x="{width - 2}" y="{y + 4:.1f}" text-anchor="end">{escape(dot.text)}</text>']  # fmt: skip
    if dot.value is not None and math.isfinite(dot.value):
        x = scale.at(dot.value)
        if dot.high is None:
            parts.append(f'<path class="bar" {style} d="M{x} {y}H{right}m-5 -4l5 4l-5 4"/>')
        elif dot.low is not None and dot.high > dot.low:
            parts.append(f'<line class="bar" {style} x1="{scale.at(dot.low)}" x2="{scale.at(dot.high)}" '
                         f'y1="{y}" y2="{y}"/>')  # fmt: skip
        ring = f'<circle class="ring" {style} cx="{x}" cy="{y}" r="8"/>' if dot.best else ""
        parts.append(f'{ring}<circle class="mark" {style} cx="{x}" cy="{y}" r="5"/>')
    return f"<g><title>{escape(_said(dot))}</title>{''.join(parts)}</g>"


def _labels(ticks: Sequence[float], scale: Axis, y: float) -> list[str]:
    """Numbers of the axis that do not touch each other."""
    parts, last = [], -math.inf
    for tick in ticks:
        x = scale.at(tick)
        if x - last >= 40:
            parts.append(f'<text class="tick" x="{x}" y="{y}" text-anchor="middle">{short(tick)}</text>')
            last = x
    return parts


def _said(dot: Dot) -> str:
    return f"{dot.name}: {dot.text}{f', {dot.about}' if dot.about else ''}{' (best)' if dot.best else ''}"
