"""A run's journal: the measurements and files of a run, one JSON document per line, in the store.

The training thread writes only here. `genflow.tracking.sync` sends the entries to MLflow in another process. An outage
of MLflow therefore delays nothing (a line costs microseconds), loses nothing (the file stays) and duplicates nothing
(every line has a time, and MLflow keeps one row per key, time, step and value).

    {"t": 1764000000000, "journal": {"id": "5f0c...", "experiment": "digits", "name": "fm-digits"}}
    {"t": 1764000000412, "step": 100, "stream": "train", "metrics": {"loss": 0.231, "grad_norm": "inf"}}
    {"t": 1764000000933, "step": 100, "image": {"key": "samples/ema", "file": "runs/fm-1a2b/samples/100.png"}}

`t` is in milliseconds since 1970. The other entries are `params`, `tags`, `artifact`, `model`, `dataset`, `description`
and `status`. JSON cannot represent numbers that are not finite, so these are the strings "nan", "inf" and "-inf".

A journal is append-only. If a killed writer left an incomplete last line, the next writer ends it with a newline, and
readers skip it.
"""

import contextlib
import fcntl
import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from genflow.errors import GenflowError
from genflow.storage import mirror
from genflow.storage.files import explain_disk_errors, write_atomically
from genflow.storage.json_lines import append_line, end_torn_line

Entry = dict[str, Any]
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


def journal_path(store_root: str | Path, run_id: str) -> Path:
    """The path of a run's journal: `<store>/journals/<run id>.jsonl`."""
    return Path(store_root) / "journals" / f"{run_id}.jsonl"


class Journal:
    """Writes a journal. It skips entries that the journal has, because a run that resumes repeats some steps.

    It holds a shared lock on the file while it is open, so that `has_writer` can detect it.

    Args:
        path: the file, from `journal_path`; created if it is missing.
        experiment: the MLflow experiment, which is the dataset's name. Only the first writer of a journal sets it.
        name: the run's name in MLflow; empty: the run's id.
        parent: the run id of the parent run in MLflow; empty: no parent.

    Raises:
        ResourceError: the disk is full.
        SetupError: the file cannot be written, or the store's bucket does not respond.
    """

    def __init__(self, path: str | Path, *, experiment: str = "genflow", name: str = "", parent: str = "") -> None:
        self.path = Path(path)
        self._root = self.path.absolute().parent.parent
        self._last: dict[str, int] = {}  # last step of each metric of the stream "train"
        self._torn = False  # whether a full disk left the last line incomplete
        self._written: set[tuple[Any, ...]] = set()  # keys of all other entries that are written once
        with explain_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.sync_with_bucket()
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_SH)
            end_torn_line(self._file)
        for _, entry in entries(self.path):
            self._remember(entry)
        if ("journal",) not in self._written:
            name = name or self.path.stem
            child = {"parent": parent} if parent else {}
            self._append({"journal": {"id": uuid.uuid4().hex, "experiment": experiment, "name": name, **child}})

    def metrics(self, step: int, values: Mapping[str, Any], *, stream: str = "train") -> None:
        """Write metrics, unless the journal has them.

        In the stream "train" steps only increase: a metric at or before its last step is skipped. Every other stream
        takes steps in any order and keeps one value per metric and step. Measurements under other conditions need their
        own stream, such as the evaluation's id.

        Args:
            step: the training step; for a quality curve, the number of network evaluations.
            values: numbers (or tensors of one number) by name, such as {"loss": 0.2}.
            stream: the series that the step belongs to.
        """
        step = int(step)
        fresh = {key: _jsonable(float(value)) for key, value in values.items() if self._is_new(stream, key, step)}
        if fresh:
            self._append({"step": step, "stream": stream, "metrics": fresh})

    def image(self, step: int, key: str, file: str | Path) -> None:
        """Log an image under `key`, such as "samples/ema"; one image per key and step."""
        if ("image", key, step) not in self._written:
            self._append({"step": int(step), "image": {"key": key, "file": self._store_relative(file)}})

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings by flat name. MLflow never changes a setting, so the first value of each stays."""
        fresh = {key: value for key, value in values.items() if ("params", key) not in self._written}
        if fresh:
            self._append({"params": fresh})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags of the run; a later value replaces an earlier one."""
        self._append({"tags": {key: str(value) for key, value in values.items()}})

    def artifact(self, file: str | Path, folder: str = "") -> None:
        """Log a file, or the contents of a folder, as an artifact of the run in MLflow, under `folder`."""
        self._append({"artifact": {"file": self._store_relative(file), "artifact_path": folder}})

    def model(self, checkpoint: str | Path, name: str, *, step: int = 0) -> None:
        """Register a checkpoint folder, once, as a new version of the model `name`."""
        path = self._store_relative(checkpoint)
        if ("model", name, path) not in self._written:
            self._append({"step": int(step), "model": {"checkpoint": path, "name": name}})

    def dataset(self, path: str | Path, name: str, digest: str, *, schema: Any, profile: Any) -> None:
        """Log, once, the dataset that the run trains on.

        Args:
            path: its folder in the store.
            name, digest: MLflow regards datasets of the same name and digest as equal; a digest has at most 36 letters.
            schema, profile: the columns in MLflow's form, and facts such as the number of rows.
        """
        if ("dataset", name, digest) not in self._written:
            about = {"name": name, "digest": digest, "schema": schema, "profile": profile}
            self._append({"dataset": {"path": self._store_relative(path), **about}})

    def description(self, headline: str, picture: str | Path | None = None, details: str = "") -> None:
        """Describe the run in Markdown: a headline, a picture, details. A later description replaces an earlier one."""
        shown = {"picture": self._store_relative(picture)} if picture else {}
        self._append({"description": {"headline": headline, **shown, "details": details}})

    def status(self, status: Status) -> None:
        """Log the run's status. A run whose journal ends without a final status counts as KILLED."""
        self._append({"status": status})

    def sync_with_bucket(self) -> None:
        """Synchronize the journal with the bucket, if the store is in a bucket."""
        if bucket := mirror.containing(self.path):
            bucket.sync(self.path)

    def close(self) -> None:
        """Close the file. Closing twice is allowed."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            with contextlib.suppress(GenflowError):  # the file stays here, and the sender reports what it cannot send
                self.sync_with_bucket()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, entry: Entry) -> None:
        """Append one entry with one write and without fsync."""
        with explain_disk_errors(self.path):
            if self._torn:
                end_torn_line(self._file)
            self._torn = True
            append_line(self._file, {"t": time.time_ns() // 1_000_000, **entry}, default=str)
            self._torn = False
        self._remember(entry)

    def _remember(self, entry: Entry) -> None:
        step, stream = entry.get("step", 0), entry.get("stream")
        if "metrics" in entry and stream == "train":
            self._last.update({key: max(step, self._last.get(key, step)) for key in entry["metrics"]})
        elif "metrics" in entry:
            self._written.update((stream, key, step) for key in entry["metrics"])
        elif "image" in entry:
            self._written.add(("image", entry["image"]["key"], step))
        elif "params" in entry:
            self._written.update(("params", key) for key in entry["params"])
        elif "model" in entry:
            self._written.add(("model", entry["model"]["name"], entry["model"]["checkpoint"]))
        elif "dataset" in entry:
            self._written.add(("dataset", entry["dataset"]["name"], entry["dataset"]["digest"]))
        elif "journal" in entry:
            self._written.add(("journal",))

    def _is_new(self, stream: str, key: str, step: int) -> bool:
        if stream == "train":
            return key not in self._last or step > self._last[key]
        return (stream, key, step) not in self._written

    def _store_relative(self, file: str | Path) -> str:
        """The path relative to the store if the file is inside it, so that the store can be moved; else absolute."""
        path = Path(file).absolute()
        return str(path.relative_to(self._root) if path.is_relative_to(self._root) else path)


@dataclass
class Cursor:
    """How far a journal was sent and to which MLflow: `<run id>.cursor.json` next to the journal.

    Args:
        uri: the tracking URI; empty: nothing was sent.
        journal: the journal's own id.
        experiment: MLflow's id of the experiment.
        run: MLflow's id of the run.
        offset: position in the journal in bytes.
        status: the last status that was sent.
    """

    uri: str = ""
    journal: str = ""
    experiment: str = ""
    run: str = ""
    offset: int = 0
    status: str = "RUNNING"

    @classmethod
    def read(cls, journal: Path) -> "Cursor":
        """The cursor of a journal; a new one if the file is missing or cannot be read."""
        try:
            return cls(**json.loads(journal.with_suffix(".cursor.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, journal: Path) -> None:
        """Save the cursor atomically."""
        write_atomically(journal.with_suffix(".cursor.json"), json.dumps(vars(self)))


def entries(path: str | Path, offset: int = 0) -> Iterator[tuple[int, Entry]]:
    """Read a journal from a byte offset. Yields the offset after each complete entry, and the entry."""
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # incomplete: being written now, or left by a killed writer
            offset += len(line)
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # left by a killed writer and ended by a later one
            if isinstance(entry, dict):
                yield offset, entry


def header(path: str | Path) -> Entry:
    """The entry with the journal's id, experiment and name; empty if there is none yet."""
    return next((entry for _, entry in entries(path) if "journal" in entry), {})


def curves(path: str | Path, stream: str = "train") -> dict[str, list[tuple[int, float]]]:
    """The metrics of a stream: (step, value) pairs by name, in the order of writing."""
    found: dict[str, list[tuple[int, float]]] = {}
    for _, entry in entries(path):
        if "metrics" in entry and entry.get("stream") == stream:
            for key, value in entry["metrics"].items():
                found.setdefault(key, []).append((entry["step"], float(value)))
    return found


def has_writer(path: str | Path) -> bool:
    """Whether a process has this journal open for writing."""
    file = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _jsonable(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
