"""Numbers as the words in the tables' cells, and the tables as text and as Markdown."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from genflow.evaluation.metrics.base import number
from genflow.evaluation.metrics.likelihood import likelihood_text as likelihood

Quantity = dict[str, Any]
Cells = dict[str, list[str]]  # by column; each cell is some short lines
WIDTH = 24  # characters of a column of the text
MARKS = {"confirmed": "✓", "refuted": "✗", "undecided": "?", "not measured": "–"}


def cells(method: dict[str, Any], tolerance: float, target: float = 0.0) -> Cells:
    """Every column's cell of a method.

    Args:
        method: {title, objective, mathematics, quantities, samples}.
        tolerance: of the steps needed.
        target: of the time to a quality, in floors.
    """
    found = method["quantities"]
    makers: dict[str, Callable[[], list[str]]] = {
        "objective": lambda: [method["objective"], *_optional(found, "straightness", "ways bend by {}")],
        "steps": lambda: _steps(found, tolerance),
        "quality": lambda: _quality(found),
        "mathematics": lambda: [method["mathematics"]],
        "likelihood": lambda: _likelihood(found),
        "coverage": lambda: _coverage(found),
        "speed": lambda: _speed(found, target),
        "stability": lambda: _stability(found),
    }
    return {column: make() or ["not measured"] for column, make in makers.items()}


def format_quantity(quantity: Quantity, form: Callable[[float], str] = number) -> str:
    """A value, with its interval in brackets where it has one."""
    if quantity["value"] is None:
        return "–"
    text = form(quantity["value"])
    if quantity["high"] is None:
        return f"{text} or more"
    return text if quantity["low"] == quantity["high"] else f"{text} ({form(quantity['low'])}–{form(quantity['high'])})"


def share(value: float) -> str:
    """Two decimals, within what a share can be."""
    return f"{min(1.0, max(0.0, value)):.2f}"


def percent(value: float) -> str:
    """Whole percents, not below none."""
    return f"{100 * max(0.0, value):.0f} %"


def count(value: float) -> str:
    """A number of things, whole where it is whole."""
    return f"{value:.0f}" if value == int(value) else f"{max(0.0, value):.1f}"


def _optional(
    found: dict[str, Quantity], name: str, form: str, form_number: Callable[[float], str] = number
) -> list[str]:
    return [form.format(format_quantity(found[name], form_number))] if name in found else []


def _steps(found: dict[str, Quantity], tolerance: float) -> list[str]:
    if "steps" not in found:
        return []
    steps = found["steps"]
    if steps["tried"] == 1:
        return ["1"]
    lines = [format_quantity(steps, count), f"to come within {percent(tolerance)} of its best"]
    if steps["high"] is None:
        lines.append("more than were tried may be needed")
    return [*lines, f"{steps['tried']} were tried"]


def _quality(found: dict[str, Quantity]) -> list[str]:
    if "fd" not in found:
        return []
    fd = found["fd"]
    floor = f", {fd['value'] / fd['floor']:.1f}\u00a0×\u00a0floor" if fd["floor"] else ""
    lines = [f"fd {_positive(fd)}{floor}", f"at {_evaluations(found)}"]
    lines += _optional(found, "kid", "KID {} × 1000", lambda value: number(1000 * value))
    lines += _with_real(found, "precision", "precision")
    lines += _with_real(found, "classification", "teaches a classifier")
    if "copies" in found:
        real = found["copies"]["floor"]
        held_out = f", held-out {100 * real:.1f} %" if real is not None else ""
        lines.append(f"copies {100 * found['copies']['value']:.1f} %{held_out}")
    return lines


def _evaluations(found: dict[str, Quantity]) -> str:
    evaluations = count(found["nfe"]["value"])
    return f"{evaluations} evaluation{'s' if evaluations != '1' else ''}"


def _positive(quantity: Quantity) -> str:
    return format_quantity({**quantity, "low": max(0.0, quantity["low"])})


def _with_real(found: dict[str, Quantity], name: str, title: str) -> list[str]:
    if name not in found:
        return []
    floor = found[name]["floor"]
    return [f"{title} {format_quantity(found[name], share)}" + (f", real {share(floor)}" if floor is not None else "")]


def _likelihood(found: dict[str, Quantity]) -> list[str]:
    quantity = found.get("likelihood")
    if quantity is None:
        return []
    if quantity["kind"] == "none":
        return ["none"]
    if quantity["value"] is None:
        return ["not measured"]
    kinds = {"lower-bound": "a bound", "exact-dequantized": "exact", "ode-estimate": "an estimate"}
    method = f", {quantity['method']}" if quantity["method"] else ""
    unit = "" if quantity["unit"] == "nats" else f" {quantity['unit']}"
    cost = f"{quantity['nfe']} evaluation{'s' if quantity['nfe'] != 1 else ''} a picture"
    return [likelihood(quantity) + unit, kinds[quantity["kind"]] + method, cost]


def _coverage(found: dict[str, Quantity]) -> list[str]:
    lines = _with_real(found, "recall", "recall") + _with_real(found, "coverage", "coverage")
    for trial, name in (("grid", "modes"), ("uneven", "uneven modes")):
        if f"{trial}_captured" in found:
            captured = found[f"{trial}_captured"]
            lines.append(f"{count(captured['value'])} of {captured['of']} {name}")
            lines.append(f"{percent(found[f'{trial}_share']['value'])} of points in one")
            kl = found[f"{trial}_kl"]
            lines.append(f"KL {_positive(kl)}, real {number(kl['floor'])}")
    if "stacked_captured" in found:
        captured, kl = found["stacked_captured"], found["stacked_kl"]
        lines.append(f"{format_quantity(captured, count)} of {captured['of']:,} modes of stacked digits")
        lines.append(f"real {count(found['stacked_ceiling']['value'])}; KL {_positive(kl)}, real {number(kl['floor'])}")
    if "rarest" in found:
        rarest = found["rarest"]
        lines.append(f"rarest class {rarest['class']}: {format_quantity(rarest)} of its real share")
    return lines


def _speed(found: dict[str, Quantity], target: float) -> list[str]:
    if "ms" not in found:
        return []
    lines = [
        _evaluations(found),
        f"{number(found['ms']['value'])} ms in batches of 64",
        f"{number(found['ms_alone']['value'])} ms alone",
        f"{number(found['images_per_second']['value'])} pictures/s",
    ]
    if found["steps"]["tried"] > 1:
        lines.insert(2, f"{number(found['ms_needed']['value'])} ms with the steps needed")
    if "train_rate" in found:
        lines.append(f"trains on {number(found['train_rate']['value'])} pictures a CPU s")
    if "seconds_to" in found:
        seconds = found["seconds_to"]
        within = f"within {count(target)} × floor"
        if seconds["value"] is None:
            lines.append(f"not {within} after {number(seconds['tried'])} CPU s of training")
        else:
            lines.append(f"{within} after {format_quantity(seconds)} CPU s of training")
    if "memory_mb" in found:
        lines.append(f"peak {number(found['memory_mb']['value'])} MB")
    return lines


def _stability(found: dict[str, Quantity]) -> list[str]:
    lines = _optional(found, "spread", "fd varies by {}", percent) + _optional(found, "worst", "worst fd {}")
    if "diverged" in found:
        each = found["diverged"]["each"]
        lines.append(f"{sum(each):.0f} of {len(each)} trainings diverged")
    if "lr_sensitivity" in found:
        quantity = found["lr_sensitivity"]
        if quantity["value"] is None:
            times = {"slow": "a third of", "fast": "three times"}[quantity["failed"]]
            lines.append(f"diverged at {times} the rate")
        else:
            rates = ", ".join(f"× {number(value)}" for value in quantity["each"])
            lines.append(f"fd at a third and three times the rate: {rates}")
    return lines


# --- As text


def as_text(table: dict[str, Any]) -> str:
    """A table for the terminal: {title, columns: [[key, name]], rows: [{title, cells}]}."""
    head = ["", *(name for _, name in table["columns"])]
    width = [max([14, *(len(line) for row in table["rows"] for line in _wrapped(row["title"], 16))])]
    blocks = [[_wrapped(row["title"], 16), *_wrapped_cells(row, table["columns"])] for row in table["rows"]]
    width += [
        max(len(head[i]), *(len(line) for block in blocks for line in block[i])) for i in range(1, len(head))
    ]
    lines = [_line(head, width), "  ".join("─" * w for w in width)]
    for block in blocks:
        tall = max(len(cell) for cell in block)
        lines += [_line([cell[i] if i < len(cell) else "" for cell in block], width) for i in range(tall)]
        lines.append("")
    return "\n".join([table["title"], "", *lines[:-1]])


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]


def _wrapped_cells(row: dict[str, Any], columns: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[part for line in row["cells"][key] for part in _wrapped(line, WIDTH)] for key, _ in columns]


def _line(words: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(word.ljust(width) for word, width in zip(words, widths, strict=True)).rstrip()


def claim_line(claim: dict[str, Any]) -> str:
    """A claim and what was measured, in one line."""
    return f"{MARKS[claim['verdict']]} {claim['says']}: {claim['verdict']} ({measured_sides(claim)})"


def measured_sides(claim: dict[str, Any]) -> str:
    """The two sides of a claim's test as they were measured."""
    left, right = claim["left"], claim["right"]
    if isinstance(left, str) or isinstance(right, str):
        return left or "not measured"
    if claim["verdict"] == "not measured":
        return "not measured"
    sides = [_side(side) for side in (left, right)]
    return " against ".join(side for side in sides if side) or "not measured"


def _side(side: Quantity | None) -> str:
    if side is None or side.get("value") is None:
        return "not measured"
    ends = [end for end in (side["value"], side["low"], side["high"]) if end is not None]
    return format_quantity(side, count if all(end == int(end) for end in ends) else number)


# --- As Markdown


def as_markdown(document: dict[str, Any]) -> str:
    """The document of `genflow tables` as a page."""
    about = document["about"]
    parts = [f"# {document['dataset_name']}: the two tables, measured\n"]
    parts += [f"{line}\n" for line in document["verdict"]]
    for table in document["tables"]:
        head = ["", *(name for _, name in table["columns"])]
        rows = [
            [row["title"], *("<br>".join(row["cells"][key]) for key, _ in table["columns"])] for row in table["rows"]
        ]
        parts += [f"## {table['title']}\n", _markdown([head, ["---"] * len(head), *rows])]
    claims = [["claim", "measured", "verdict", "source"], ["---"] * 4]
    claims += [[c["says"], measured_sides(c), c["verdict"], c["source"]] for c in document["claims"]]
    parts += ["## What textbooks say\n", _markdown(claims)]
    if document["failed"]:
        parts += ["## What failed\n", "".join(f"- {f['stage']}: {f['message']}\n" for f in document["failed"])]
    parts += ["## How\n", *(f"- {line}" for line in about), "", f"`{document['command']}`\n"]
    return "\n".join(parts)


def _markdown(lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n" for cells in lines)
