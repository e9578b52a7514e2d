"""The trials of a search, appended to one file that survives a kill."""

from pathlib import Path
from typing import Protocol, cast

from genflow.storage import mirror
from genflow.storage.files import explain_disk_errors
from genflow.storage.json_lines import append_durably, read_lines
from genflow.system.documents import Json
from genflow.tuning import metrics
from genflow.tuning.reports import Report, Row
from genflow.tuning.trial import REPORTS, read_reports, trial_folder

RECORD = "record.jsonl"
WORST = 1e12  # the value that a searcher gets for a trial without one: worse than any


class TrialListener(Protocol):
    """Receives the start and the end of each trial."""

    def on_start(self, number: int, params: Json) -> None:
        """A trial starts or resumes."""

    def on_end(self, number: int, status: str, why: str = "") -> None:
        """A trial has ended."""


class TrialLog:
    """The append-only log of a search's trials; only the driver writes it.

    Args:
        folder: of the trials; the log is stored in it.
        listener: is called at the start and the end of each trial.
    """

    def __init__(self, folder: Path, listener: "TrialListener | None" = None) -> None:
        self.folder, self.path, self.listener = folder, folder / RECORD, listener

    def log_start(self, number: int, params: Json) -> None:
        """Log a new trial's settings."""
        self._append({"trial": number, "params": params})
        self.resume(number, params)

    def resume(self, number: int, params: Json) -> None:
        """Resume a trial; nothing is logged because its settings already are."""
        if self.listener:
            self.listener.on_start(number, params)

    def log_end(self, number: int, status: str, why: str = "") -> None:
        """Log how a trial ended: finished, stopped, diverged or failed."""
        self._append({"trial": number, "status": status, **({"why": why} if why else {})})
        if self.listener:
            self.listener.on_end(number, status, why)

    def log_seconds(self, seconds: float) -> None:
        """Log how long the trials have taken, over all attempts."""
        self._append({"seconds": round(seconds, 1)})

    def entries(self) -> list[Json]:
        """All entries in order; an incomplete line is skipped."""
        _sync(self.path)
        return read_lines(self.path)

    def append(self, entry: Json) -> None:
        """Append another entry (see `pbt`)."""
        self._append(entry)

    def seconds(self) -> float:
        """How long the trials took in earlier attempts."""
        return max((entry["seconds"] for entry in self.entries() if "seconds" in entry), default=0.0)

    def rows(self) -> list[Row]:
        """Every trial, by number."""
        rows: dict[int, Json] = {}
        for entry in self.entries():
            if "trial" in entry:
                rows.setdefault(entry["trial"], {"status": "running"}).update(entry)
        return [cast(Row, row | summarize(self.reports(number))) for number, row in sorted(rows.items())]

    def reports(self, number: int) -> list[Report]:
        """A trial's reports, rung by rung."""
        folder = trial_folder(self.folder, number)
        _sync(folder / REPORTS)
        return read_reports(folder)

    def _append(self, entry: Json) -> None:
        with explain_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_durably(self.path, entry)
        _sync(self.path)


def _sync(path: Path) -> None:
    """Synchronize the file with the bucket, if the store is one."""
    if bucket := mirror.containing(path):
        bucket.sync(path)


def summarize(reports: list[Report]) -> Json:
    """The last report that has values, without its status; share 0 if no report has."""
    with_values = [report for report in reports if "values" in report]
    found: Json = {**with_values[-1]} if with_values else {"values": {}, "share": 0.0}
    for gone in ("status", "why"):
        found.pop(gone, None)
    return found


def searcher_value(metric: str, report: Report) -> float:
    """A report's value for a searcher: always finite, and worse than any other if the trial has no valid value."""
    value = report.get("values", {}).get(metric)
    if value is None or report.get("status") or abs(value) > WORST or value != value:
        return WORST if metrics.mode(metric) == "min" else -WORST
    return float(value)
