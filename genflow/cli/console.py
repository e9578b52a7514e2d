"""Terminal output: progress on standard error, results on standard output, each error on one line.

`--json` prints exactly one document on standard output. Colours and progress bars appear only on a terminal, and
NO_COLOR, TERM=dumb and CI are respected. Without a terminal, progress is one line every few seconds.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genflow.errors import GenflowError, UsageError
from genflow.system.streams import note as note  # part of the output of a command

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.system.events import Event

EVERY_SECONDS = 10.0  # between two progress lines without a terminal


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


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A plain-text table: the first `left` columns are left-aligned, the others right-aligned."""
    cells = [[str(cell) for cell in row] for row in [headers, *rows]]
    widths = [max(width(row[i]) for row in cells) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        spaces = [" " * (w - width(cell)) for cell, w in zip(row, widths, strict=True)]
        padded = [cell + pad if i < left else pad + cell for i, (cell, pad) in enumerate(zip(row, spaces, strict=True))]
        return "  ".join(padded).rstrip()

    first, *rest = (line(row) for row in cells)
    return "\n".join([first, "  ".join("─" * w for w in widths), *rest])


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
        values = [f"{row['values'][name]:.4g}" if name in row["values"] else "—" for name in metrics]
        params = [format_setting(row["params"][key]) if key in row["params"] else "preset" for key in keys]
        share = f"{row['share']:.0%}" if row["share"] else "—"
        lines.append([str(row["trial"]), row["status"], *values, str(row.get("samples", "—")), share, *params])
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


class Progress:
    """Show the events of a job: a bar per task on a terminal, otherwise a line per task every few seconds."""

    def __init__(self, quiet: bool = False) -> None:
        self._live: Any = None
        self._tasks: dict[str, Any] = {}
        self._printed_at: dict[str, float] = {}
        self._table = ""  # the best trials of a search, shown above the bars
        self._best: Any = None
        self._quiet = quiet

    def __enter__(self) -> "Progress":
        if is_live() and not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress
            from rich.text import Text

            outer = self

            class Bars(RichProgress):
                """Progress bars below the table of trials, if there is one."""

                def get_renderables(self) -> Any:
                    yield from [Text(outer._table, no_wrap=True, overflow="ellipsis")] if outer._table else []
                    yield from super().get_renderables()

            self._live = Bars(
                TextColumn("{task.description}"), BarColumn(bar_width=28), TextColumn("{task.fields[text]}"),
                console=Console(stderr=True), transient=False,
            )  # fmt: skip
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: "Event") -> None:
        """Show an event."""
        match event["event"]:
            case "progress":
                self._progress(event)
            case "trials":
                self._trials(event)
            case "stage":
                self._stage(event)
            case "warning":
                self._print(f"warning: {event['message']}" + (f" ({event['hint']})" if event.get("hint") else ""))
            case "note":
                self._print(event["message"])

    def _progress(self, event: "Event") -> None:
        what = str(event.get("run") or event.get("dataset") or "")
        task = f"{event['stage']:<8} {what.rpartition('-')[0] or what}"
        share = event.get("position")
        if share is None:
            share = event["step"] / max(1, event.get("steps") or 1)
        text = describe(event, share)
        if self._live:
            if task not in self._tasks:
                self._tasks[task] = self._live.add_task(task, total=1.0, text="")
            self._live.update(self._tasks[task], completed=min(1.0, share), text=text)
            return
        now = time.monotonic()
        if not self._quiet and (now - self._printed_at.get(task, -1e9) >= EVERY_SECONDS or share >= 1):
            self._printed_at[task] = now
            note(f"{task}  {share:4.0%}  {text}")

    def _trials(self, event: "Event") -> None:
        """Show the trials of a search: a live table on a terminal, otherwise a line per finished trial."""
        if self._live:
            header, lines = trial_rows(event["metrics"], event["keys"], event["rows"])
            self._table = table(header, lines, left=2) if lines else ""
            self._live.refresh()
            return
        if not event["over"]:
            return
        row, metric = event["row"], event["metrics"][0]
        value = f"{metric} {row['values'][metric]:.4g}" if metric in row["values"] else row.get("why", "")
        best = event["rows"][0]["trial"] == row["trial"] and row["status"] == "finished"
        params = "  ".join(f"{key}={format_setting(x)}" for key, x in row["params"].items())
        self._print(f"trial {row['trial']:<4} {row['status']:<9} {value}{'  (best)' if best else ''}  {params}")

    def _stage(self, event: "Event") -> None:
        text = {"cached": "cached", "skipped": "skipped: a stage that it needs failed", "failed": "failed"}
        if event["status"] in text:
            from genflow.pipeline import stages

            artifact = stages.artifact(event["job"], event.get("document", {}))
            more = f" ({artifact})" if artifact else ""
            more = f": {event['message']}" if event["status"] == "failed" else more
            self._print(f"{event['job']:<8} {event['name']}  {text[event['status']]}{more}")

    def _print(self, text: str) -> None:
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        elif not self._quiet:
            note(text)


def describe(event: "Event", share: float) -> str:
    """The numbers of a progress event as text."""
    parts = [f"{event['step']:,}/{event['steps']:,}" if event.get("steps") else f"{event['step']:,}"]
    if (loss := event.get("loss")) is not None:
        parts.append(f"loss {loss:.4g}")
    if rate := event.get("images_per_second") or event.get("rate"):
        parts.append(f"{rate:,.0f} img/s")
    if what := event.get("what"):
        parts.append(str(what))
    if event.get("eta") is not None and share < 1:
        parts.append(f"ETA {duration(event['eta'])}")
    return "  ".join(parts)
