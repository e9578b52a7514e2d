"""The progress of a job: on a terminal a bar for each running task, otherwise a line per task every few seconds."""

import base64
import time
from typing import TYPE_CHECKING, Any

from genflow.cli import pictures
from genflow.cli.console import duration, format_setting, is_live, note, table, trial_rows

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.system.events import Event

EVERY_SECONDS = 10.0  # between two progress lines without a terminal
ESTIMATE_SECONDS = 30.0  # between two lines about the remaining time without a terminal
REFRESHES = 4  # a second, of the bars: more would take time from the training on the same machine
LABEL, BAR = 30, (6, 28)  # columns of a task's name, and of its bar at least and at most
MANY = 12  # stages of a pipeline, above which the cached ones are only counted on a terminal
LINES_BESIDE = 8  # of the terminal, for the lines that are not bars
NUMBERS = 54  # columns for the numbers of a task, from which the bar gets what is left


class Progress:
    """Show the events of a job.

    Args:
        quiet: show nothing.
        details: show the plans and the pictures of the stages of a pipeline, too.
        pictures: show pictures, if the terminal can.
    """

    def __init__(self, quiet: bool = False, *, details: bool = True, pictures: bool = True) -> None:
        self._quiet, self._details, self._pictures = quiet, details, pictures
        self._live: Any = None
        self._tasks: dict[str, Any] = {}
        self._waits: dict[str, str] = {}  # what each task waits for
        self._printed_at: dict[str, float] = {}
        self._table = ""  # the best trials of a search, shown above the bars
        self._stages: dict[str, str] = {}  # the state of each stage of a pipeline
        self._total = 0  # stages of the pipeline
        self._until: float | None = None  # when all stages are expected to be done

    def __enter__(self) -> "Progress":
        if is_live() and not self._quiet:
            self._pictures = self._pictures and pictures.are_shown()  # rich replaces the streams when it starts
            if self._pictures and self._details:
                pictures.protocol()  # may ask the terminal, before there are bars on it
            self._live = _bars(self)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._live:
            for task, what in list(self._waits.items()):
                if what:  # of a job that had nothing to do
                    self._remove(task)
                elif kind is None and task in self._tasks:
                    self._live.update(self._tasks[task], completed=1.0)
            self._stages, self._until = {}, None
            self._live.stop()

    def __call__(self, event: "Event") -> None:
        """Show an event."""
        match event["event"]:
            case "progress":
                self._progress(event)
            case "waiting":
                self._waiting(event)
            case "plan" if self._details or "of" not in event:
                self._print(event["message"])
            case "picture" if self._details or "of" not in event:
                self._picture(event)
            case "trials":
                self._trials(event)
            case "stages":
                self._total = event["total"]
            case "stage":
                self._stage(event)
            case "warning":
                self._print(f"warning: {event['message']}" + (f" ({event['hint']})" if event.get("hint") else ""))
            case "note":
                self._print(event["message"])

    def remaining(self, seconds: float) -> None:
        """Show how long all stages of a pipeline still take."""
        self._until = time.monotonic() + seconds
        if not self._live and time.monotonic() - self._printed_at.get("stages", -1e9) >= ESTIMATE_SECONDS:
            self._printed_at["stages"] = time.monotonic()
            self._print(self.summary())

    def summary(self) -> str:
        """The stages of a pipeline in one line: how many are done, run and wait, and the remaining time."""
        if not self._stages:
            return ""
        done = sum(state != "running" for state in self._stages.values())
        running = sum(name in self._waits for name, state in self._stages.items() if state == "running")  # not queued
        parts = [f"{done} of {self._total} stages done"]
        parts += [f"{running} running"] if running else []
        parts += [f"{waiting} waiting"] if (waiting := self._total - done - running) > 0 else []
        left = self._until - time.monotonic() if self._until else 0
        return f"         {' · '.join(parts)}" + (f" · ETA {duration(left)}" if left > 0 else "")

    def _waiting(self, event: "Event") -> None:
        """Show what a task waits for; its bar has no end until its first step."""
        key = _key(event)
        if self._waits.get(key) == event["what"]:
            return
        if key:
            self._remove("")
        self._waits[key] = event["what"]
        if self._live:
            self._update(key, _label(event), None, lambda: str(event["what"]))
        elif "of" not in event and event["stage"] == "train":
            self._print(f"{_label(event):<8} {' ' if key else ''}{event['what']}")

    def _progress(self, event: "Event") -> None:
        key, label = _key(event), _label(event)
        share = event.get("position")
        if share is None:
            share = event["step"] / max(1, event.get("steps") or 1)
        self._remove("")
        self._waits[key] = ""
        now = time.monotonic()
        if self._live:
            until = None if event.get("eta") is None else now + event["eta"]

            def text() -> str:
                left = None if until is None else until - time.monotonic()
                return describe({**event, "eta": left if left and left >= 1 else None}, share, self.room)

            self._update(key, label, min(1.0, share), text)
        elif not self._quiet and (now - self._printed_at.get(key, -1e9) >= EVERY_SECONDS or share >= 1):
            self._printed_at[key] = now
            note(f"{label}  {min(1.0, share):4.0%}  {describe(event, share)}")

    @property
    def room(self) -> int:
        """Columns of the terminal for a task's numbers."""
        return max(12, self._live.console.width - LABEL - _bar_width(self._live.console.width) - 2) if self._live else 0

    def _update(self, key: str, label: str, share: float | None, text: Any) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._live.add_task(label, total=None, text=text)
        total = None if share is None else 1.0
        self._live.update(self._tasks[key], description=label, total=total, completed=share or 0, text=text)

    def _remove(self, key: str) -> None:
        self._waits.pop(key, None)
        if self._live and key in self._tasks:
            self._live.remove_task(self._tasks.pop(key))

    def _picture(self, event: "Event") -> None:
        if not self._live or not self._pictures:
            return
        drawn = pictures.drawing(base64.b64decode(event["png"]), event["count"], self._live.console.width)
        self._print(f"samples at step {event['step']:,}")
        self._live.console.print(drawn)

    def _trials(self, event: "Event") -> None:
        """Show the trials of a search: a live table on a terminal, otherwise a line per finished trial."""
        if self._live:
            header, lines = trial_rows(event["metrics"], event["keys"], event["rows"])
            self._table = table(header, lines, left=2, room=0) if lines else ""
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
        """Count the stages of a pipeline. A stage that ends loses its bar, or the bar would stay with its last ETA."""
        self._stages[event["name"]] = event["status"]
        self._remove("")
        if event["status"] != "running":
            made = event.get("document", {})
            for key in (event["name"], made.get("run"), made.get("dataset")):  # a task of a stage may not know its name
                self._remove(key or "")
        if event["status"] == "cached" and self._live and self._total > MANY:
            return  # they are counted
        text = {"cached": "cached", "skipped": "skipped: a stage that it needs failed", "failed": "failed"}
        if event["status"] in text:
            from genflow.pipeline import stages

            artifact = stages.artifact(event["job"], event.get("document", {}))
            more = f" ({artifact})" if artifact else ""
            more = f": {event['message']}" if event["status"] == "failed" else more
            self._print(f"{event['job']:<8} {event['name']}  {text[event['status']]}{more}")

    def top(self) -> list[str]:
        """The lines above the bars."""
        return [text for text in (self._table, self.summary()) if text]

    def _print(self, text: str) -> None:
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        elif not self._quiet:
            note(text)


def _bars(progress: Progress) -> Any:
    """Bars below the table of trials and the count of stages, if there are any."""
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Label(ProgressColumn):
        def render(self, task: Any) -> Text:
            label = task.description
            return Text(label if len(label) <= LABEL else f"{label[: LABEL - 1]}…", no_wrap=True)

    class Numbers(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(task.fields["text"](), no_wrap=True, overflow="ellipsis")

    class Bars(RichProgress):
        def get_renderables(self) -> Any:
            yield from (Text(text, no_wrap=True, overflow="ellipsis") for text in progress.top())
            yield self.make_tasks_table(self.tasks[: max(1, console.height - LINES_BESIDE)])

    console = Console(stderr=True)
    columns = (Label(), BarColumn(bar_width=_bar_width(console.width)), Numbers())
    return Bars(*columns, console=console, transient=False, refresh_per_second=REFRESHES)


def _bar_width(columns: int) -> int:
    least, most = BAR
    return max(least, min(most, columns - LABEL - NUMBERS))


def _key(event: "Event") -> str:
    """A task of the job: the stage of a pipeline, else what the job makes; "" before that is known."""
    return str(event.get("of") or event.get("run") or event.get("dataset") or "")


def _label(event: "Event") -> str:
    what = str(event.get("run") or event.get("dataset") or "")
    return f"{event['stage']:<8} {what.rpartition('-')[0] or what}".rstrip()


def describe(event: "Event", share: float, room: int = 0) -> str:
    """The numbers of a progress event as text.

    Args:
        event: the event.
        share: of the task that is done.
        room: columns of the terminal; what is least needed is left out. 0: any number.
    """
    steps = f"{event['step']:,}/{event['steps']:,}" if event.get("steps") else f"{event['step']:,}"
    eta = f"ETA {duration(event['eta'])}" if event.get("eta") is not None and share < 1 else ""
    loss = f"loss {event['loss']:.4g}" if event.get("loss") is not None else ""
    validation = f"val {event['validation']:.4g}" if event.get("validation") is not None else ""
    rate = event.get("images_per_second") or event.get("rate")
    speed = f"{rate:,.0f} img/s" if rate else ""
    parts = [steps, loss, validation, speed, str(event.get("what") or ""), eta]
    for least in (3, 2, 4, 0, 1):  # the number of the part to leave out next
        text = "  ".join(part for part in parts if part)
        if not room or len(text) <= room:
            break
        parts[least] = ""
    return "  ".join(part for part in parts if part)
