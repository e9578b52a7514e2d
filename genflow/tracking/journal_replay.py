"""Send the entries of a journal to MLflow until a request has no answer.

Sending is idempotent. A metric is identified by key, time, step and value; an image by key, step and time; a model
version by its checkpoint; the run by a tag with the journal's id. The cursor, which stores how far a journal was sent,
may therefore be lost at any time.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from genflow.storage.store import Store
from genflow.tracking.experiments import find_or_create
from genflow.tracking.journal import Cursor, Entry, entries, has_writer, header
from genflow.tracking.mlflow_client import (
    Caller,
    MlflowNotFound,
    MlflowRejected,
    MlflowUnavailable,
    Requests,
    load,
    one_line,
    without_password,
)
from genflow.tracking.model_package import register

BATCH = 1000  # largest number of metrics in one request
DESCRIPTION = "description"  # the folder of the picture in a run's description

Row = tuple[str, float, int, int]  # key, value, milliseconds, step


@dataclass
class SendResult:
    """The result of sending a journal.

    Args:
        entries: the number of entries that were sent this time.
        complete: whether MLflow has every entry of the journal.
        problem: the reason if it has not, in one line.
        rejected: the reasons for which entries were skipped.
    """

    entries: int = 0
    complete: bool = False
    problem: str = ""
    rejected: list[str] = field(default_factory=list)


class JournalReplay:
    """One replay of one journal. The caller holds the journal's lock.

    Args:
        path: the journal.
        store: the store; paths in the journal are relative to its root.
        uri: MLflow's tracking URI.
        artifacts: the artifact location of a new experiment; None: MLflow's default.
        timeout_s: seconds to wait for the answer to a request.
        sent: receives the result.
        requests: receives what the replay is waiting for.
    """

    def __init__(self, path: Path, store: Store, uri: str, artifacts: str | None, timeout_s: float,
                 sent: SendResult, requests: Requests) -> None:  # fmt: skip
        self.path, self.store, self.root, self.uri, self.artifacts = path, store, store.root, uri, artifacts
        self.sent, self.public_uri = sent, without_password(uri)
        self._call = Caller(self.public_uri, timeout_s, requests)
        self.cursor = Cursor.read(path)
        self.waiting = 0  # entries that were read and are not counted in the cursor yet
        self.metrics: list[Row] = []

    def run(self) -> None:
        """Send the entries after the cursor.

        Raises:
            MlflowUnavailable: some entries were not sent; the next replay resumes there.
        """
        writing = has_writer(self.path)  # checked first, so that all entries of a finished writer are read below
        synced = self.store.sync(self.path).stat().st_size  # later entries wait until they are in the bucket too
        first = header(self.path)
        if not first:
            return
        self._connect(first)
        end = self.cursor.offset
        for after, entry in entries(self.path, self.cursor.offset):
            if after > synced:
                break
            end = after
            self.waiting += 1
            if "metrics" in entry:
                self.metrics += [(key, float(x), entry["t"], entry["step"]) for key, x in entry["metrics"].items()]
                if len(self.metrics) < BATCH:
                    continue
            self._flush()
            try:
                self._send(entry)
            except (MlflowUnavailable, OSError):
                raise
            except Exception as error:  # a rejected entry, or an entry of another version
                self.sent.rejected.append(one_line(error)[:300])
            self._advance(end)
        self._flush()
        if self.cursor.status == "RUNNING" and not writing:
            self._status("KILLED", int(self.path.stat().st_mtime * 1000))
        self._advance(end)

    def _advance(self, offset: int) -> None:
        self.cursor.offset = offset
        self.cursor.write(self.path)
        self.sent.entries += self.waiting
        self.waiting = 0

    # --- Destination: one experiment per dataset, one run per journal

    def _connect(self, first: Entry) -> None:
        load()
        from mlflow import MlflowClient

        journal = first["journal"]
        registry = os.environ.get("MLFLOW_REGISTRY_URI") or self.uri  # MLflow's default is the current folder
        self.client = self._call(MlflowClient, self.uri, registry)
        sent_here = (self.cursor.uri, self.cursor.journal) == (self.public_uri, journal["id"])
        if sent_here and self._run_exists(self.cursor.run):
            return
        experiment = find_or_create(self._call, self.client, journal["experiment"], self.artifacts)
        self.cursor = Cursor(self.public_uri, journal["id"], experiment, self._run(experiment, first, self.path))

    def _run(self, experiment: str, first: Entry, path: Path) -> str:
        """The id of a journal's run. Creates the run, and before it its parent run, if they do not exist."""
        from mlflow.entities import ViewType

        journal = first["journal"]
        query = f"tags.`genflow.journal` = '{journal['id']}'"
        found = self._call(self.client.search_runs, [experiment], query, ViewType.ALL, max_results=1)
        if not found:
            tags = {"genflow.journal": journal["id"], "genflow.run": path.stem}
            if (parent := path.with_name(f"{journal.get('parent')}.jsonl")).is_file():
                tags["mlflow.parentRunId"] = self._run(experiment, header(parent), parent)
            named = {"run_name": journal["name"], "start_time": first["t"], "tags": tags}
            found = [self._call(self.client.create_run, experiment, **named)]
        return str(found[0].info.run_id)

    def _run_exists(self, run: str) -> bool:
        try:
            return bool(self._call(self.client.get_run, run))
        except MlflowNotFound:  # the database was replaced
            return False

    # --- Entries

    def _flush(self) -> None:
        while self.metrics:
            self._metrics(self.metrics[:BATCH])
            self.metrics = self.metrics[BATCH:]

    def _metrics(self, rows: list[Row]) -> None:
        """Send rows in one request. If MLflow rejects it, bisect the rows until only bad rows are left out."""
        from mlflow.entities import Metric

        try:
            self._call(self.client.log_batch, self.cursor.run, metrics=[Metric(*row) for row in rows])
        except MlflowRejected as error:
            if len(rows) == 1:
                self.sent.rejected.append(one_line(error)[:300])
                return
            self._metrics(rows[: len(rows) // 2])
            self._metrics(rows[len(rows) // 2 :])

    def _send(self, entry: Entry) -> None:
        from mlflow.entities import RunTag

        run = self.cursor.run
        if "params" in entry:
            self._params(entry["params"])
        elif "tags" in entry:
            self._call(self.client.log_batch, run, tags=[RunTag(*pair) for pair in entry["tags"].items()])
        elif "image" in entry:
            self._image(entry["image"], entry["step"], entry["t"])
        elif "artifact" in entry:
            file, folder = self._file(entry["artifact"]["file"]), entry["artifact"]["artifact_path"] or None
            send = self.client.log_artifacts if file.is_dir() else self.client.log_artifact
            self._call(send, run, str(file), folder)
        elif "model" in entry:
            model, folder = entry["model"], self.root / "runs" / self.path.stem
            register(self._call, self.client, self.cursor, folder, self._file(model["checkpoint"]), model["name"],
                     entry["step"])  # fmt: skip
        elif "dataset" in entry:
            self._dataset(entry["dataset"])
        elif "description" in entry:
            self._description(**entry["description"])
        elif "status" in entry:
            self._status(entry["status"], entry["t"])

    def _params(self, params: dict[str, Any]) -> None:
        """Send settings, at most 100 per request and 6000 characters each: MLflow's limits."""
        from mlflow.entities import Param

        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in params.items()}
        rows = [Param(key, text if len(text) <= 6000 else f"{text[:5997]}...") for key, text in texts.items()]
        for start in range(0, len(rows), 100):
            self._call(self.client.log_batch, self.cursor.run, params=rows[start : start + 100])

    def _image(self, image: dict[str, str], step: int, t: int) -> None:
        from PIL import Image

        name = f"{image['key'].replace('/', '~')}+step+{step}+timestamp+{t}+"  # how MLflow's file names start
        files = [Path(file.path).name for file in self._call(self.client.list_artifacts, self.cursor.run, "images")]
        if any(file.startswith(name) and file.endswith(".webp") for file in files):  # the file that MLflow writes last
            return
        path = self._file(image["file"])
        try:
            picture = Image.open(path)
            picture.load()
        except OSError as error:
            raise MlflowRejected(f"{path} is not an image") from error
        where = {"key": image["key"], "step": step, "timestamp": t, "synchronous": True}
        self._call(self.client.log_image, self.cursor.run, picture, **where)

    def _dataset(self, dataset: dict[str, Any]) -> None:
        """Log the dataset that the run trains on as its input. MLflow keeps one for each name and digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind, path = ("s3" if self.store.mirror else "local"), dataset["path"]
        uri = f"{self.store.url}/{path}" if self.store.mirror else (self.root / path).absolute().as_uri()
        texts = {"source": {"uri": uri}, "schema": dataset["schema"], "profile": dataset["profile"]}
        documents = {key: json.dumps(text) for key, text in texts.items()}
        made = Dataset(name=dataset["name"], digest=dataset["digest"], source_type=kind, **documents)
        tags = [InputTag("mlflow.data.context", "training")]
        self._call(self.client.log_inputs, self.cursor.run, [DatasetInput(made, tags)])

    def _description(self, headline: str, picture: str = "", details: str = "") -> None:
        """Set the run's description. MLflow folds it after a few lines; its picture is an artifact."""
        parts = [headline]
        if picture:
            file = self._file(picture)
            self._call(self.client.log_artifact, self.cursor.run, str(file), DESCRIPTION)
            # relative to the page, so that it is right under any address of the server
            parts.append(f"![samples](get-artifact?path={DESCRIPTION}/{quote(file.name)}&run_uuid={self.cursor.run})")
        text = "\n\n".join(part for part in (*parts, details) if part)
        self._call(self.client.set_tag, self.cursor.run, "mlflow.note.content", text)

    def _status(self, status: str, t: int) -> None:
        if status == "RUNNING":
            self._call(self.client.update_run, self.cursor.run, status)
        else:
            self._call(self.client.set_terminated, self.cursor.run, status, t)
        self.cursor.status = status

    def _file(self, name: str) -> Path:
        path = self.root / name
        if not path.exists() and not self._download(path):
            raise MlflowRejected(f"{path} does not exist")
        return path

    def _download(self, path: Path) -> bool:
        """Download a file or the files of a folder, if the store is in a bucket. Return whether the path exists now."""
        if self.store.mirror and not self.store.available(path):
            self.store.mirror.download_missing(path)
        return path.exists()
