"""What a person sees: progress on standard error, results on standard output, errors as one line.

`--json` prints exactly one document on standard output. Colour and movement only on a terminal; NO_COLOR,
TERM=dumb and CI are honoured; elsewhere a line every few seconds.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genflow.errors import GenflowError, UsageError

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.system.events import Event

EVERY_SECONDS = 10.0  # between two progress lines off a terminal


def is_live() -> bool:
    """Whether standard error is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def note(text: str) -> None:
    """One line about what is going on."""
    print(text, file=sys.stderr, flush=True)


def fail(error: GenflowError, verbose: bool) -> int:
    """Print an error as one line, and the command that mends it; return the exit code."""
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
    """Print the one JSON document."""
    import json

    print(json.dumps(value, indent=2, default=str))


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 41s, 3m05s, 2h10m."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def date(seconds: float) -> str:
    """A time since the epoch as a local date and time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A plain table: the first `left` columns to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in [headers, *rows]]
    widths = [max(width(row[i]) for row in cells) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        spaces = [" " * (w - width(cell)) for cell, w in zip(row, widths, strict=True)]
        padded = [cell + pad if i < left else pad + cell for i, (cell, pad) in enumerate(zip(row, spaces, strict=True))]
        return "  ".join(padded).rstrip()

    first, *rest = (line(row) for row in cells)
    return "\n".join([first, "  ".join("─" * w for w in widths), *rest])


def width(text: str) -> int:
    """The columns that text takes on a terminal: a Chinese character takes two, a combining accent none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def format_setting(value: Any) -> str:
    """A setting as it would be typed."""
    import json

    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def trial_rows(metrics: Sequence[str], keys: Sequence[str], rows: Sequence[dict[str, Any]]) -> tuple[list[str], Any]:
    """The head and the lines of a table of a search's trials."""
    short = [key.removeprefix("train.").removeprefix("family.") for key in keys]
    head = ["trial", "state", *metrics, "N", "budget", *(short if len(set(short)) == len(short) else keys)]
    lines = []
    for row in rows:
        values = [f"{row['values'][name]:.4g}" if name in row["values"] else "—" for name in metrics]
        params = [format_setting(row["params"][key]) if key in row["params"] else "preset" for key in keys]
        share = f"{row['share']:.0%}" if row["share"] else "—"
        lines.append([str(row["trial"]), row["status"], *values, str(row.get("samples", "—")), share, *params])
    return head, lines


def next_commands(*commands: str) -> None:
    """What to do now, after a result."""
    print("\nNext:  " + "\n       ".join(commands))


def confirm(question: str, consequence: str, yes: bool) -> None:
    """Ask before something is done that cannot be undone; any answer but yes ends the command.

    Raises:
        UsageError: standard input is no terminal, and --yes was not given.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(consequence, "say --yes")
    if input(question).strip().lower() not in ("y", "yes"):
        raise SystemExit(0)


class Progress:
    """Draws a job's events: one bar a task on a terminal, one line a task every few seconds elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self._live: Any = None
        self._tasks: dict[str, Any] = {}
        self._told: dict[str, float] = {}
        self._table = ""  # of a search's best trials, above the bars
        self._best: Any = None
        self._quiet = quiet

    def __enter__(self) -> "Progress":
        if is_live() and not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Plain
            from rich.text import Text

            shown = self

            class Bars(Plain):
                """The bars, below a table where there is one."""

                def get_renderables(self) -> Any:
                    yield from [Text(shown._table, no_wrap=True, overflow="ellipsis")] if shown._table else []
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
        if not self._quiet and (now - self._told.get(task, -1e9) >= EVERY_SECONDS or share >= 1):
            self._told[task] = now
            note(f"{task}  {share:4.0%}  {text}")

    def _trials(self, event: "Event") -> None:
        """A search's trials: a live table, or elsewhere a line a trial that is over."""
        if self._live:
            head, lines = trial_rows(event["metrics"], event["keys"], event["rows"])
            self._table = table(head, lines, left=2) if lines else ""
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
        text = {"cached": "cached", "skipped": "skipped: what it needs failed", "failed": "failed"}
        if event["status"] in text:
            made = event.get("document", {})
            artifact = made.get("dataset") if event["job"] == "prepare" else made.get("run") or made.get("report")
            more = f" ({artifact})" if artifact else ""
            more = f": {event['message']}" if event["status"] == "failed" else more
            self._print(f"{event['job']:<8} {event['name']}  {text[event['status']]}{more}")

    def _print(self, text: str) -> None:
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        elif not self._quiet:
            note(text)


def describe(event: "Event", share: float) -> str:
    """A progress event's numbers in words."""
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
