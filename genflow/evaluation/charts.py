"""Line charts as inline SVG: no library in the page, crisp on paper, and readable by a screen reader."""

import html
import math
from dataclasses import dataclass, field

# Okabe and Ito's palette: told apart by people who see few colours, and in grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4", "1 3")
WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 44


@dataclass
class Line:
    """One curve.

    Args:
        name: for the legend.
        points: (x, y, low, high); low and high draw an interval.
        colour: its place in the palette.
        marks: whether points are shown.
    """

    name: str
    points: list[tuple[float, float, float, float]]
    colour: int
    marks: bool = True


@dataclass
class Axis:
    """An axis: its title, and whether it is logarithmic."""

    title: str
    log: bool = False
    ticks: list[float] = field(default_factory=list)


def chart(lines: list[Line], x: Axis, y: Axis, what: str, level: tuple[float, str] | None = None) -> str:
    """An SVG of the lines.

    Args:
        lines: at least one with a point, else nothing is drawn.
        x: the horizontal axis.
        y: the vertical axis.
        what: the picture in words, for those who cannot see it.
        level: a horizontal line at this height, with its name.
    """
    points = [p for line in lines for p in line.points if not x.log or p[0] > 0]
    if not points:
        return ""
    heights = [v for p in points for v in (p[1], p[2], p[3])] + ([level[0]] if level else [])
    if y.log:
        heights = [v for v in heights if v > 0]
    across = _Scale([p[0] for p in points], x, LEFT, WIDTH - RIGHT)
    up = _Scale(heights, y, HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(what)}">']
    parts.append(_axes(x, y, across, up))
    if level:
        h = up(level[0])
        parts.append(f'<line class="floor" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{h:.1f}" y2="{h:.1f}"/>')
        parts.append(f'<text class="floor" x="{WIDTH - RIGHT}" y="{h - 5:.1f}" text-anchor="end">{level[1]}</text>')
    for line in lines:
        parts.append(_curve(line, across, up))
    return "".join([*parts, "</svg>"])


class _Scale:
    def __init__(self, values: list[float], axis: Axis, start: float, end: float) -> None:
        self.axis, self.start, self.end = axis, start, end
        low, high = min(values), max(values)
        if axis.log:
            low, high = math.log10(low), math.log10(high)
        elif low > 0 and low < 0.5 * high:
            low = 0.0
        margin = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
        self.low, self.high = (low - margin if axis.log or low else low), high + margin
        self.bottom = min(values)

    def __call__(self, value: float) -> float:
        value = math.log10(max(value, 1e-12, self.bottom * 0.5)) if self.axis.log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.axis.ticks:
            return self.axis.ticks
        if self.axis.log:
            span = self.high - self.low
            every = [m * 10.0**e for e in range(math.floor(self.low), math.ceil(self.high) + 1) for m in (1, 2, 5)]
            inside = [t for t in every if self.low <= math.log10(t) <= self.high]
            return inside if span < 2.2 else [t for t in inside if math.log10(t) % 1 < 1e-9]
        raw = (self.high - self.low) / 4
        unit = 10 ** math.floor(math.log10(raw))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def _axes(x: Axis, y: Axis, across: _Scale, up: _Scale) -> str:
    parts = []
    for tick in up.ticks():
        h = up(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{h:.1f}" y2="{h:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{h + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in across.ticks():
        w = across(tick)
        shown = f"{tick / 1000:g}k" if tick >= 10_000 else f"{tick:g}"
        parts.append(f'<text x="{w:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{shown}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    centre = (TOP + HEIGHT - BOTTOM) / 2
    for title, place in ((x.title, f'x="{middle}" y="{HEIGHT - 6}"'),
                         (y.title, f'transform="translate(14 {centre}) rotate(-90)"')):  # fmt: skip
        parts.append(f'<text class="title" {place} text-anchor="middle">{html.escape(title)}</text>')
    return "".join(parts)


def _curve(line: Line, across: _Scale, up: _Scale) -> str:
    colour, dash = COLOURS[line.colour % len(COLOURS)], DASHES[line.colour % len(DASHES)]
    places = [(across(x), up(y), up(low), up(high)) for x, y, low, high in line.points]
    parts = [f'<g stroke="{colour}" fill="{colour}"><title>{html.escape(line.name)}</title>']
    if len(places) > 1:
        path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y, _, _ in places)
        parts.append(f'<path class="curve" d="{path}" fill="none" stroke-dasharray="{dash}"/>')
    if line.marks:
        for x, y, low, high in places:
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>')
    return "".join([*parts, "</g>"])


def legend(names: list[str]) -> str:
    """The curves' names beside their colours and dashes."""
    items = []
    for i, name in enumerate(names):
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
        line = f'<line x1="0" x2="30" y1="6" y2="6" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"/>'
        sign = f'<svg viewBox="0 0 30 12" width="30" height="12" aria-hidden="true">{line}</svg>'
        items.append(f"<li>{sign}{html.escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'
