"""Numbers as text in the cells of the tables, and the tables as text and as Markdown."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from genflow.evaluation.metrics.base import number
from genflow.evaluation.metrics.likelihood import likelihood_text as likelihood
from genflow.system.folding import column_groups
from genflow.system.streams import NONE

Quantity = dict[str, Any]
Cells = dict[str, list[str]]  # by column; a cell is a list of short lines
WIDTH = 24  # largest width of a column in the text version, in characters
MARKS = {"confirmed": "✓", "refuted": "✗", "undecided": "?", "not measured": "–"}


def cells(method: dict[str, Any], tolerance: float, target: float = 0.0) -> Cells:
    """The cells of a method, by column.

    Args:
        method: {objective, mathematics, quantities}.
        tolerance: of the steps needed, as a share of the best fd.
        target: the quality for the training time, as a multiple of the floor of fd.
    """
    found = method["quantities"]
    makers: dict[str, Callable[[], list[str]]] = {
        "objective": lambda: [
            method["objective"], *_optional(found, "straightness", "curvature of the paths {}; 0 is straight"),
        ],
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
    """A value, with its interval in parentheses if it has one; "8 or more" if the interval has no upper end."""
    if quantity["value"] is None:
        return "–"
    text = form(quantity["value"])
    if quantity["high"] is None:
        return f"{text} or more"
    return text if quantity["low"] == quantity["high"] else f"{text} ({form(quantity['low'])}–{form(quantity['high'])})"


def share(value: float) -> str:
    """A share with two decimals, clamped to 0..1."""
    return f"{min(1.0, max(0.0, value)):.2f}"


def percent(value: float) -> str:
    """A share as whole percent, at least 0 %."""
    return f"{100 * max(0.0, value):.0f} %"


def count(value: float) -> str:
    """A count: without decimals if it is whole, else with one decimal."""
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
    lines = [format_quantity(steps, count), f"to be within {percent(tolerance)} of its best fd"]
    if steps["high"] is None:
        lines.append("more than the largest tried number may be needed")
    return [*lines, f"tried up to {steps['tried']}"]


def _quality(found: dict[str, Quantity]) -> list[str]:
    if "fd" not in found:
        return []
    fd = found["fd"]
    floor = f", {fd['value'] / fd['floor']:.1f}\u00a0×\u00a0floor" if fd["floor"] else ""
    lines = [f"fd {_positive(fd)}{floor}", f"with {_evaluations(found)}"]
    lines += _optional(found, "reconstruction_fd", "fd of reconstructions {}, the limit")
    lines += _optional(found, "kid", "KID {} × 1000", lambda value: number(1000 * value))
    lines += _with_real(found, "precision", "precision")
    lines += _with_real(found, "classification", "accuracy of a classifier trained on samples")
    lines += _with_real(found, "r_precision", "own caption found among others")
    lines += _with_real(found, "r_precision_unseen", "the same for unseen captions")
    if "copies" in found:
        real = found["copies"]["floor"]
        held_out = f", held-out data {100 * real:.1f} %" if real is not None else ""
        lines.append(f"copies {100 * found['copies']['value']:.1f} %{held_out}")
    return lines


def _evaluations(found: dict[str, Quantity]) -> str:
    evaluations = count(found["nfe"]["value"])
    return f"{evaluations} network evaluation{'s' if evaluations != '1' else ''}"


def _positive(quantity: Quantity) -> str:
    return format_quantity({**quantity, "low": max(0.0, quantity["low"])})


def _with_real(found: dict[str, Quantity], name: str, title: str) -> list[str]:
    if name not in found:
        return []
    floor = found[name]["floor"]
    real = f", real data {share(floor)}" if floor is not None else ""
    return [f"{title} {format_quantity(found[name], share)}{real}"]


def _likelihood(found: dict[str, Quantity]) -> list[str]:
    quantity = found.get("likelihood")
    if quantity is None:
        return [NONE] if "reconstruction_fd" in found else []
    if quantity["kind"] == "none":
        return ["none"]
    if quantity["value"] is None:
        return ["not measured"]
    kinds = {"lower-bound": "lower bound of the likelihood", "exact-dequantized": "exact", "ode-estimate": "estimate"}
    method = f", {quantity['method']}" if quantity["method"] else ""
    unit = "" if quantity["unit"] == "nats" else f" {quantity['unit']}"
    cost = f"{quantity['nfe']} network evaluation{'s' if quantity['nfe'] != 1 else ''} per picture"
    return [likelihood(quantity) + unit, kinds[quantity["kind"]] + method, cost]


def _coverage(found: dict[str, Quantity]) -> list[str]:
    lines = _with_real(found, "recall", "recall") + _with_real(found, "coverage", "coverage")
    for trial, name in (("grid", "modes"), ("uneven", "uneven modes")):
        if f"{trial}_captured" in found:
            captured = found[f"{trial}_captured"]
            lines.append(f"{count(captured['value'])} of {captured['of']} {name}")
            lines.append(f"{percent(found[f'{trial}_share']['value'])} of points near a mode")
            kl = found[f"{trial}_kl"]
            lines.append(f"KL divergence {_positive(kl)}, real data {number(kl['floor'])}")
    if "stacked_captured" in found:
        captured, kl = found["stacked_captured"], found["stacked_kl"]
        lines.append(f"{format_quantity(captured, count)} of {captured['of']:,} modes of stacked digits")
        lines.append(f"real data {count(found['stacked_ceiling']['value'])}")
        lines.append(f"KL divergence {_positive(kl)}, real data {number(kl['floor'])}")
    if "rarest" in found:
        rarest = found["rarest"]
        lines.append(f"most neglected class {rarest['class']}: {format_quantity(rarest)} × its share in real data")
    return lines


def _speed(found: dict[str, Quantity], target: float) -> list[str]:
    if "ms" not in found:
        return []
    lines = [
        _evaluations(found),
        f"{number(found['ms']['value'])} ms per sample in batches of 64",
        f"{number(found['ms_alone']['value'])} ms in a batch of 1",
        f"{number(found['images_per_second']['value'])} samples/s",
    ]
    if found["steps"]["tried"] > 1:
        lines.insert(2, f"{number(found['ms_needed']['value'])} ms per sample with the steps needed")
    if "train_rate" in found:
        lines.append(f"trains on {number(found['train_rate']['value'])} images per CPU s")
    if "seconds_to" in found:
        seconds = found["seconds_to"]
        within = f"fd within {count(target)} × floor"
        if seconds["value"] is None:
            lines.append(f"no {within} after {number(seconds['tried'])} CPU s of training")
        else:
            lines.append(f"{within} after {format_quantity(seconds)} CPU s of training")
    if "memory_mb" in found:
        lines.append(f"peak memory {number(found['memory_mb']['value'])} MB")
    return lines


def _stability(found: dict[str, Quantity]) -> list[str]:
    lines = _optional(found, "spread", "standard deviation of fd over seeds {}", percent)
    lines += _optional(found, "worst", "worst fd {}")
    if "diverged" in found:
        each = found["diverged"]["each"]
        lines.append(f"{sum(each):.0f} of {len(each)} trainings diverged")
    if "lr_sensitivity" in found:
        quantity = found["lr_sensitivity"]
        if quantity["value"] is None:
            times = {"slow": "a third of", "fast": "three times"}[quantity["failed"]]
            lines.append(f"diverged at {times} the learning rate")
        else:
            rates = ", ".join(f"× {number(value)}" for value in quantity["each"])
            lines.append(f"fd at a third and three times the learning rate: {rates}")
    return lines


# --- As text


def as_text(table: dict[str, Any], room: int = 0) -> str:
    """A table for the terminal.

    Args:
        table: {title, columns: [[key, name]], rows: [{title, cells}]}.
        room: columns of the terminal, above which the table is folded; 0: any.
    """
    head = ["", *(name for _, name in table["columns"])]
    width = [max([14, *(len(line) for row in table["rows"] for line in _wrapped(row["title"], 16))])]
    blocks = [[_wrapped(row["title"], 16), *_wrapped_cells(row, table["columns"])] for row in table["rows"]]
    width += [
        max(len(head[i]), *(len(line) for block in blocks for line in block[i])) for i in range(1, len(head))
    ]
    parts = []
    for columns in column_groups(width, 1, room):
        widths = [width[i] for i in columns]
        lines = [_line([head[i] for i in columns], widths), "  ".join("─" * w for w in widths)]
        for block in blocks:
            cells = [block[i] for i in columns]
            tall = max(len(cell) for cell in cells)
            lines += [_line([cell[i] if i < len(cell) else "" for cell in cells], widths) for i in range(tall)]
            lines.append("")
        parts.append("\n".join(lines[:-1]))
    return "\n\n".join([table["title"], *parts])


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _wrapped_cells(row: dict[str, Any], columns: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[part for line in row["cells"][key] for part in _wrapped(line, WIDTH)] for key, _ in columns]


def _line(words: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(word.ljust(width) for word, width in zip(words, widths, strict=True)).rstrip()


def claim_line(claim: dict[str, Any]) -> str:
    """A claim, its verdict and the measured quantities, in one line."""
    return f"{MARKS[claim['verdict']]} {claim['says']}: {claim['verdict']} ({measured_sides(claim)})"


def measured_sides(claim: dict[str, Any]) -> str:
    """The measured quantities on both sides of a claim's test, as text."""
    left, right = claim["left"], claim["right"]
    if isinstance(left, str) or isinstance(right, str):
        return left or "not measured"
    if claim["verdict"] == "not measured":
        return "not measured"
    sides = [_side(side) for side in (left, right)]
    return " compared with ".join(side for side in sides if side) or "not measured"


def _side(side: Quantity | None) -> str:
    if side is None or side.get("value") is None:
        return "not measured"
    ends = [end for end in (side["value"], side["low"], side["high"]) if end is not None]
    return format_quantity(side, count if all(end == int(end) for end in ends) else number)


# --- As Markdown


def as_markdown(document: dict[str, Any]) -> str:
    """The document of `genflow tables` as a Markdown page."""
    about = document["about"]
    parts = [f"# {document['dataset_name']}: generative models compared in two tables\n"]
    parts += [f"{line}\n" for line in document["verdict"]]
    for table in document["tables"]:
        head = ["", *(name for _, name in table["columns"])]
        rows = [
            [row["title"], *("<br>".join(row["cells"][key]) for key, _ in table["columns"])] for row in table["rows"]
        ]
        parts += [f"## {table['title']}\n", _markdown([head, ["---"] * len(head), *rows])]
    claims = [["claim", "measured", "verdict", "source"], ["---"] * 4]
    claims += [[c["says"], measured_sides(c), c["verdict"], c["source"]] for c in document["claims"]]
    parts += ["## Claims of textbooks\n", _markdown(claims)]
    if document["failed"]:
        parts += ["## Failed stages\n", "".join(f"- {f['stage']}: {f['message']}\n" for f in document["failed"])]
    parts += ["## How it was measured, and its limits\n", *(f"- {line}" for line in about), ""]
    parts.append(f"`{document['command']}`\n")
    return "\n".join(parts)


def _markdown(lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n" for cells in lines)
