"""Terminal output: progress on standard error, results on standard output, each error on one line.

`--json` prints exactly one document on standard output. Colours and progress bars appear only on a terminal, and
NO_COLOR, TERM=dumb and CI are respected. Without a terminal, progress is one line every few seconds.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from genflow.errors import GenflowError, UsageError
from genflow.system.folding import column_groups, terminal_room
from genflow.system.streams import NONE
from genflow.system.streams import note as note  # part of the output of a command


def is_live() -> bool:
    """Whether standard error is a terminal that can redraw lines."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def fail(error: GenflowError, verbose: bool) -> int:
    """Print an error as one line, followed by its hint; return the exit code."""
    if verbose:
        import traceback

        notes = getattr(error, "__notes__", [])
        print("".join(notes) or "".join(traceback.format_exception(error)), file=sys.stderr)
    text = " ".join(error.message.split())
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    print(f"\x1b[31merror:\x1b[0m {text}" if colour else f"error: {text}", file=sys.stderr)
    if error.hint:
        print(f"  fix: {error.hint}", file=sys.stderr)
    return error.code


def document(value: Any) -> None:
    """Print the JSON document of a command."""
    import json

    print(json.dumps(value, indent=2, default=str))


def duration(seconds: float | None) -> str:
    """Seconds in readable form: 41s, 3m05s, 2h10m; `?` for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def date(seconds: float) -> str:
    """Seconds since the epoch as local date and time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, room: int | None = None) -> str:
    """A plain-text table: the first `left` columns are left-aligned, the others right-aligned.

    Args:
        headers: of the columns.
        rows: cells of text.
        left: the number of left-aligned columns.
        room: columns of the terminal, above which the table is folded; 0: any; None: those of standard output.
    """
    cells = [[str(cell) for cell in row] for row in [headers, *rows]]
    widths = [max(width(row[i]) for row in cells) for i in range(len(headers))]
    room = terminal_room() if room is None else room

    def line(row: Sequence[str], columns: list[int]) -> str:
        spaces = [" " * (widths[i] - width(row[i])) for i in columns]
        padded = [row[i] + pad if i < left else pad + row[i] for i, pad in zip(columns, spaces, strict=True)]
        return "  ".join(padded).rstrip()

    tables = []
    for columns in column_groups(widths, _repeated(widths, left, room), room):
        first, *rest = (line(row, columns) for row in cells)
        tables.append("\n".join([first, "  ".join("─" * widths[i] for i in columns), *rest]))
    return "\n\n".join(tables)


def _repeated(widths: Sequence[int], left: int, room: int) -> int:
    """How many of the first columns each part of a folded table repeats: those that name a row."""
    return 1 if room and widths[0] > 2 else min(2, left)


def wrapped(text: str, indent: str = "") -> str:
    """A sentence in lines that fit the terminal on standard output, if it is one; no word is split.

    Args:
        text: without line breaks.
        indent: of all lines but the first.
    """
    if not (room := terminal_room()):
        return text
    import textwrap

    return textwrap.fill(text, room, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def width(text: str) -> int:
    """Terminal columns that a text needs: a Chinese character needs two, a combining accent none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def format_setting(value: Any) -> str:
    """A setting as a user would type it."""
    import json

    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def trial_rows(metrics: Sequence[str], keys: Sequence[str], rows: Sequence[dict[str, Any]]) -> tuple[list[str], Any]:
    """Header and rows of a table of trials."""
    short = [key.removeprefix("train.").removeprefix("family.") for key in keys]
    header = ["trial", "state", *metrics, "N", "budget", *(short if len(set(short)) == len(short) else keys)]
    lines = []
    for row in rows:
        values = [f"{row['values'][name]:.4g}" if name in row["values"] else NONE for name in metrics]
        params = [format_setting(row["params"][key]) if key in row["params"] else "preset" for key in keys]
        share = f"{row['share']:.0%}" if row["share"] else NONE
        lines.append([str(row["trial"]), row["status"], *values, str(row.get("samples", NONE)), share, *params])
    return header, lines


def next_commands(*commands: str) -> None:
    """Print commands that a user may run next."""
    print("\nNext:  " + "\n       ".join(commands))


def confirm(question: str, consequence: str, yes: bool) -> None:
    """Ask for confirmation; any answer except yes ends the command.

    Args:
        question: shown on a terminal.
        consequence: the error message without a terminal.
        yes: whether --yes was given, which skips the question.

    Raises:
        UsageError: standard input is not a terminal, and --yes was not given.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(consequence, "add --yes to confirm")
    if input(question).strip().lower() not in ("y", "yes"):
        raise SystemExit(0)
