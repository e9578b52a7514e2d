"""Charts as inline SVG: lines with intervals, a floor and logarithmic axes.

Colours come from the page's style sheet (`--c0` to `--c9`), so one drawing works in light and dark mode. Lines also
differ in dashes and marks, for readers who cannot distinguish the colours. Each mark has a tooltip with its numbers.
Each chart has a description for screen readers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40
COLOURS = 10
ROW, MAX_BARS = 22, 20  # the height of one bar in pixels, and the largest number of bars
DASHES = ("", "7 4", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Point:
    """A data point of a chart.

    Args:
        x: value on the x axis.
        y: value on the y axis.
        low: lower end of the interval of y; equal to y if there is no interval.
        high: upper end.
        text: the tooltip of its mark.
        own: whether its mark is drawn large, as the run's own setting.
    """

    x: float
    y: float
    low: float
    high: float
    text: str = ""
    own: bool = False


@dataclass(frozen=True)
class Series:
    """A line, or a single mark if it has one point.

    Args:
        name: its name in the legend.
        index: selects colour, dashes and mark; a run has the same index in every chart.
        points: sorted by x.
        marks: whether each point has a mark; a line without marks is solid.
    """

    name: str
    index: int
    points: Sequence[Point]
    marks: bool = True


class Axis:
    """Maps values to pixel coordinates.

    Args:
        low: the smallest value on the axis.
        high: the largest.
        start: the coordinate of `low`.
        end: the coordinate of `high`.
        log: whether the axis is logarithmic.
    """

    def __init__(self, low: float, high: float, start: float, end: float, log: bool) -> None:
        if high <= low:
            low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def at(self, value: float) -> float:
        """The coordinate of a value, clamped to the axis."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        """Round values for the labels of the axis."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1,), (1, 3), (1, 2, 5)):
                found = [d * 10.0**p for p in powers for d in digits if self.low <= d * 10.0**p <= self.high]
                if len(found) >= 3:
                    return found
            return found
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 3))
        step *= next((m for m in (1, 2, 5) if (self.high - self.low) / (m * step) <= 5), 10)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    alt: str,
    log_x: bool = False,
    x_ticks: Sequence[float] | None = None,
    floor: float | None = None,
    from_zero: bool = True,
) -> str:
    """A line chart as SVG; empty if there are no points.

    The y axis is logarithmic if `from_zero`, all values are positive and they span more than a factor of 8.

    Args:
        series: the lines; those without points are omitted.
        x_label: label below the x axis.
        y_label: label above the y axis.
        alt: description for screen readers.
        log_x: whether the x axis is logarithmic.
        x_ticks: labels of the x axis; None: round values.
        floor: a horizontal line, the value of real data.
        from_zero: whether a linear y axis starts at 0.
    """
    every = [p for s in series for p in s.points]
    if not every:
        return ""
    values = [p.y for p in every] + ([floor] if floor is not None else [])
    log_y = from_zero and min(values) > 0 and max(values) > 8 * min(values)
    top = max([p.high for p in every if math.isfinite(p.high)] + values)
    bottom = min(values) / 1.3 if log_y else 0.0 if from_zero else min(p.low for p in every)
    margin = 1.15 if log_y or from_zero else 1.0
    xs = [p.x for p in every]
    x = Axis(min(xs), max(xs), LEFT + 8, WIDTH - RIGHT - 8, log_x)
    y = Axis(bottom, top * margin if top > 0 else top, HEIGHT - BOTTOM, TOP + 14, log_y)
    parts = [_frame(x, y, x_label, y_label, x_ticks)]
    if floor is not None:
        height = y.at(floor)
        parts.append(f'<line class="floor" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>')
    parts += [_interval(s, x, y) for s in series if s.points]
    parts += [_line(s, x, y) for s in series if s.points]
    body = "".join(parts)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}">{body}</svg>'


def share_bars(
    names: Sequence[str], shares: Sequence[dict[str, float]], real: Sequence[float], index: int, alt: str
) -> str:
    """A bar chart of shares with their intervals; vertical strokes mark the shares of real data.

    Args:
        names: one per bar. Of more than 20, only those are drawn whose share differs most from that of real data.
        shares: {value, low, high} for each name.
        real: shares of real data.
        index: selects the colour.
        alt: description for screen readers.
    """
    chosen = range(len(names))
    if len(names) > MAX_BARS:
        far = sorted(chosen, key=lambda i: -abs(shares[i]["value"] - real[i]))
        chosen = sorted(far[:MAX_BARS])  # type: ignore[assignment]
    most = max([share["high"] for share in shares] + list(real))
    x = Axis(0.0, most, 112, WIDTH - RIGHT, False)
    parts, height = [], ROW * len(chosen) + 26
    for line, i in enumerate(chosen):
        share, top = shares[i], ROW * line + 4
        middle, wide = top + ROW / 2 - 2, round(x.at(share["value"]) - x.start, 2)
        text = f"{names[i]}: {100 * share['value']:.1f} % ({100 * share['low']:.1f} to {100 * share['high']:.1f})"
        low, high = x.at(share["low"]), x.at(share["high"])
        title = f"<title>{escape(text)}, real data {100 * real[i]:.1f} %</title>"
        style = f'style="--c:var(--c{index % COLOURS})"'
        label = names[i] if len(names[i]) <= 14 else f"{names[i][:13]}…"
        parts += [
            f'<text x="104" y="{middle + 4}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="share" {style} x="{x.start}" y="{top}" width="{wide}" height="{ROW - 6}">{title}</rect>',
            f'<line class="bar" {style} x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>',
            f'<line class="truth" x1="{x.at(real[i])}" x2="{x.at(real[i])}" y1="{top - 2}" y2="{top + ROW - 4}"/>',
        ]
    for value in x.ticks():
        parts.append(f'<text x="{x.at(value)}" y="{height - 4}" text-anchor="middle">{100 * value:g} %</text>')
    body = "".join(parts)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(alt)}">{body}</svg>'


def _frame(x: Axis, y: Axis, x_label: str, y_label: str, x_ticks: Sequence[float] | None) -> str:
    parts = []
    for value in y.ticks():
        height = y.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4}" text-anchor="end">{short(value)}</text>')
    last = -math.inf
    for value in x_ticks or x.ticks():
        place = x.at(value)
        if place - last >= 24:
            parts.append(f'<text x="{place}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{short(value)}</text>')
            last = place
    parts.append(f'<text class="label" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{x_label}</text>')
    parts.append(f'<text class="label" x="4" y="{TOP}">{y_label}</text>')
    return "".join(parts)


def _interval(series: Series, x: Axis, y: Axis) -> str:
    points = [p for p in series.points if p.high > p.low]
    style = f'style="--c:var(--c{series.index % COLOURS})"'
    if len(points) > 1:
        upper = [f"{x.at(p.x)},{y.at(p.high)}" for p in points]
        lower = [f"{x.at(p.x)},{y.at(p.low)}" for p in reversed(points)]
        return f'<polygon class="band" {style} points="{" ".join(upper + lower)}"/>'
    lines = [f'<line class="bar" {style} x1="{x.at(p.x)}" x2="{x.at(p.x)}" y1="{y.at(p.low)}" y2="{y.at(p.high)}"/>'
            for p in points]  # fmt: skip
    return "".join(lines)


def _line(series: Series, x: Axis, y: Axis) -> str:
    style = f'style="--c:var(--c{series.index % COLOURS})"'
    places = " ".join(f"{x.at(p.x)},{y.at(p.y)}" for p in series.points)
    dashes = f'stroke-dasharray="{DASHES[_shape(series.index)] if series.marks else ""}"'
    line = f'<polyline class="line" {style} {dashes} points="{places}"/>' if len(series.points) > 1 else ""
    marks = [_mark(series.index, x.at(p.x), y.at(p.y), 5.5 if p.own else 3.5, p.text) for p in series.points]
    return line + ("".join(marks) if series.marks else "")


def _mark(index: int, x: float, y: float, r: float, text: str) -> str:
    """A circle, square, diamond or triangle."""
    style = f'class="mark" style="--c:var(--c{index % COLOURS})"'
    title = f"<title>{escape(text)}</title>" if text else ""
    match _shape(index):
        case 0:
            return f'<circle {style} cx="{x}" cy="{y}" r="{r}">{title}</circle>'
        case 1:
            return f'<rect {style} x="{x - r}" y="{y - r}" width="{2 * r}" height="{2 * r}">{title}</rect>'
        case 2:
            corners = [(x, y - 1.3 * r), (x + 1.3 * r, y), (x, y + 1.3 * r), (x - 1.3 * r, y)]
        case _:
            corners = [(x, y - 1.3 * r), (x + 1.2 * r, y + r), (x - 1.2 * r, y + r)]
    places = " ".join(f"{a:.2f},{b:.2f}" for a, b in corners)
    return f'<polygon {style} points="{places}">{title}</polygon>'


def _shape(index: int) -> int:
    """The index of mark and dashes; shifted by one each time the colours repeat."""
    return (index + index // COLOURS) % len(DASHES)


def legend_key(index: int) -> str:
    """A sample of a series' line and mark, for legends and tables."""
    style = f'style="--c:var(--c{index % COLOURS})"'
    line = f'<line class="line" {style} x1="0" x2="30" y1="7" y2="7" stroke-dasharray="{DASHES[_shape(index)]}"/>'
    return f'<svg class="key" viewBox="0 0 30 14" aria-hidden="true">{line}{_mark(index, 15, 7, 4, "")}</svg>'


def short(value: float) -> str:
    """A value as a label of an axis: 0.5, 20, 1.5k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.3g}"
