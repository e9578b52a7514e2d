"""The one file that imports MLflow: it carries a journal's entries through, as far as a deadline lets it.

Whatever is sent twice is one thing in MLflow: a metric's row is keyed by key, time, step and value; a picture by
its key, step and time; a model's version by its checkpoint; the run itself by a tag with the journal's own id.
So the cursor, which says how far a journal was sent, may be lost at any moment.

Two things can go wrong, and no third. An *outage* stops the pass: the journal waits where it is. A *refusal*
(a name that MLflow forbids, a file that is gone) concerns one entry, which is noted and passed over, because it
must not hold up those behind it.

The imports are inside the functions: they take two seconds.
"""

import json
import logging
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from genflow.storage.manifest import sync_and_hash
from genflow.storage.store import Store
from genflow.system import environment
from genflow.tracking.journal import Cursor, Entry, entries, has_writer, header

BATCH = 1000  # metrics that one request may carry
CALL_TIMEOUT_S = 10  # the longest that one request waits for an answer
MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "safetensors", "torch")
REJECTION_CODES = {
    "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"
}  # fmt: skip

Row = tuple[str, float, int, int]  # key, value, milliseconds, step


class MlflowUnavailable(Exception):  # noqa: N818  said of MLflow, not of us
    """MLflow cannot take anything now."""


class MlflowNotFound(MlflowUnavailable):
    """MLflow does not know what is asked for."""


class MlflowRejected(Exception):  # noqa: N818
    """MLflow will never take this one thing."""


@dataclass
class SendResult:
    """What became of a journal.

    Args:
        entries: how many entries were sent now.
        complete: whether all that the journal holds is in MLflow.
        problem: why not, in a line.
        rejected: what was passed over, and why.
    """

    entries: int = 0
    complete: bool = False
    problem: str = ""
    rejected: list[str] = field(default_factory=list)


def create_database(file: Path, artifacts: str) -> None:
    """Create MLflow's sqlite database with every migration, on the disk for good."""
    _load()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{file}", artifacts).engine.dispose()
    sync_and_hash(file)


class JournalReplay:
    """One pass over one journal, by whoever holds its lock.

    Args:
        path: the journal.
        store: from whose folder the journal's paths start.
        uri: MLflow's tracking URI.
        artifacts: where a new experiment keeps its files; None: MLflow decides.
        deadline: when to stop, on the monotonic clock.
        sent: is filled in.
    """

    def __init__(self, path: Path, store: Store, uri: str, artifacts: str | None, deadline: float,
                 sent: SendResult) -> None:  # fmt: skip
        self.path, self.store, self.root, self.uri, self.artifacts = path, store, store.root, uri, artifacts
        self.deadline, self.sent = deadline, sent
        self.public_uri = without_password(uri)
        self.cursor = Cursor.read(path)
        self.waiting = 0  # entries that were read and are still before the cursor
        self.metrics: list[Row] = []

    def run(self) -> None:
        """Send what is behind the cursor.

        Raises:
            Outage: not everything arrived; the next pass goes on where this one stopped.
        """
        writing = has_writer(self.path)  # asked first, so that all it wrote is read below
        kept = self.store.sync(self.path).stat().st_size  # what came later waits until it is kept, too
        first = header(self.path)
        if not first:
            return
        self._connect(first)
        end = self.cursor.offset
        for after, entry in entries(self.path, self.cursor.offset):
            if after > kept:
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
            except Exception as error:  # a refusal, or an entry of another version
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

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """One request, within the deadline; whatever goes wrong is an outage or a refusal."""
        from mlflow.exceptions import MlflowException

        left = self.deadline - time.monotonic()
        if left <= 0:
            raise MlflowUnavailable(f"MLflow at {self.public_uri} is slow")
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, min(CALL_TIMEOUT_S, int(left))))
        try:
            return function(*args, **options)
        except MlflowException as error:
            text = one_line(error)
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise MlflowNotFound(text) from error
            if error.error_code in REJECTION_CODES:
                raise MlflowRejected(text) from error
            if "Max retries exceeded" in text:  # the reason stands last in urllib3's nested message
                text = text.rpartition(": ")[2].strip("\"')")
            raise MlflowUnavailable(f"MLflow at {self.public_uri}: {text[:300]}") from error

    # --- Where it goes: one experiment a dataset, one run a journal

    def _connect(self, first: Entry) -> None:
        _load()
        from mlflow import MlflowClient

        journal = first["journal"]
        registry = os.environ.get("MLFLOW_REGISTRY_URI") or self.uri  # MLflow's own: the current folder
        self.client = self._call(MlflowClient, self.uri, registry)
        sent_here = (self.cursor.uri, self.cursor.journal) == (self.public_uri, journal["id"])
        if sent_here and self._run_exists(self.cursor.run):
            return
        experiment = self._experiment(journal["experiment"])
        self.cursor = Cursor(self.public_uri, journal["id"], experiment, self._run(experiment, first, self.path))

    def _run(self, experiment: str, first: Entry, path: Path) -> str:
        """The id of a journal's run, which is made if it is not there, and before it the run that it is a child of."""
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
        except MlflowNotFound:  # somebody began a new database
            return False

    def _experiment(self, name: str) -> str:
        """The experiment's id. A new run brings one back that was deleted."""
        experiment = self._call(self.client.get_experiment_by_name, name)
        if experiment is None:
            try:
                return str(self._call(self.client.create_experiment, name, artifact_location=self.artifacts))
            except MlflowRejected as error:
                experiment = self._call(self.client.get_experiment_by_name, name)
                if experiment is None:
                    raise MlflowUnavailable(one_line(error)) from error
                # else another run was first
        if experiment.lifecycle_stage == "deleted":
            self._call(self.client.restore_experiment, experiment.experiment_id)
        return str(experiment.experiment_id)

    # --- What goes

    def _flush(self) -> None:
        while self.metrics:
            self._metrics(self.metrics[:BATCH])
            self.metrics = self.metrics[BATCH:]

    def _metrics(self, rows: list[Row]) -> None:
        """Send rows in one request; if MLflow refuses, halve them until the bad row stands alone."""
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
            self._model(self._file(entry["model"]["checkpoint"]), entry["model"]["name"], entry["step"])
        elif "status" in entry:
            self._status(entry["status"], entry["t"])

    def _params(self, params: dict[str, Any]) -> None:
        """Settings, 100 a request and 6000 characters each, which is what MLflow takes."""
        from mlflow.entities import Param

        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in params.items()}
        rows = [Param(key, text if len(text) <= 6000 else f"{text[:5997]}...") for key, text in texts.items()]
        for start in range(0, len(rows), 100):
            self._call(self.client.log_batch, self.cursor.run, params=rows[start : start + 100])

    def _image(self, image: dict[str, str], step: int, t: int) -> None:
        from PIL import Image

        name = f"{image['key'].replace('/', '~')}+step+{step}+timestamp+{t}+"  # as MLflow begins its files' names
        there = [Path(file.path).name for file in self._call(self.client.list_artifacts, self.cursor.run, "images")]
        if any(file.startswith(name) and file.endswith(".webp") for file in there):  # which it writes last
            return
        path = self._file(image["file"])
        try:
            picture = Image.open(path)
            picture.load()
        except OSError as error:
            raise MlflowRejected(f"{path} is no picture") from error
        where = {"key": image["key"], "step": step, "timestamp": t, "synchronous": True}
        self._call(self.client.log_image, self.cursor.run, picture, **where)

    def _status(self, status: str, t: int) -> None:
        if status == "RUNNING":
            self._call(self.client.update_run, self.cursor.run, status)
        else:
            self._call(self.client.set_terminated, self.cursor.run, status, t)
        self.cursor.status = status

    def _file(self, name: str) -> Path:
        path = self.root / name
        if not path.exists() and not self._download(path):
            raise MlflowRejected(f"{path} is gone")
        return path

    def _download(self, path: Path) -> bool:
        """Whether a bucket has it: a file, or what lies in a folder."""
        if self.store.mirror and not self.store.available(path):
            self.store.mirror.download_missing(path)
        return path.exists()

    def _model(self, checkpoint: Path, name: str, step: int) -> None:
        """Register a checkpoint as a version of a model; a tag says which checkpoint a version is."""
        from mlflow.entities import LoggedModelOutput

        mark = {"genflow.checkpoint": f"{self.cursor.journal}/{checkpoint.name}"}
        try:
            self._call(self.client.create_registered_model, name)
        except MlflowRejected:  # it is there, or its name is impossible, which the next call says
            versions = self._call(self.client.search_model_versions, f"name = '{name}'")
            if any(mark.items() <= version.tags.items() for version in versions):
                return
        query = f"tags.`genflow.checkpoint` = '{mark['genflow.checkpoint']}'"
        begun = self._call(self.client.search_logged_models, [self.cursor.experiment], query)
        origin = {"source_run_id": self.cursor.run, "tags": mark}
        create = self.client.create_logged_model
        model = begun[0] if begun else self._call(create, self.cursor.experiment, "sampler", **origin)
        with tempfile.TemporaryDirectory(prefix="genflow-") as folder:
            copy_model_files(checkpoint, self.root / "runs" / self.path.stem, Path(folder))
            self._call(save_pyfunc_model, Path(folder), run_id=self.cursor.run, model_id=model.model_id)
            self._call(self.client.log_model_artifacts, model.model_id, f"{folder}/model")
        self._call(self.client.finalize_logged_model, model.model_id, "READY")
        with suppress(MlflowRejected):  # it was said before
            self._call(self.client.log_outputs, self.cursor.run, [LoggedModelOutput(model.model_id, step)])
        origin = {"run_id": self.cursor.run, "model_id": model.model_id, "tags": mark}
        # by its place: "models:/ID" would be looked up at MLflow's global URI, which is the current folder
        self._call(self.client.create_model_version, name, model.artifact_location, **origin)


def copy_model_files(checkpoint: Path, run: Path, folder: Path) -> None:
    """Copy the code and what sampling needs of a run to a neutral place: MLflow writes its path into the model."""
    shutil.copy(MODEL_CODE, folder / "model.py")
    shutil.copytree(checkpoint, folder / "checkpoint", ignore=shutil.ignore_patterns("optimizer*"))
    for name in ("recipe.yaml", "facts.json"):
        if (run / name).is_file():
            shutil.copy(run / name, folder / "checkpoint")


def save_pyfunc_model(folder: Path, *, run_id: str, model_id: str) -> None:
    """Make `folder`/model of what was staged there: an MLflow model of code and safetensors, without a pickle."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    optional = [ColSpec("double", name, required=False) for name in ("steps", "label")]  # a column may have gaps
    request = Schema([ColSpec("long", "n"), ColSpec("long", "seed"), *optional])
    with warnings.catch_warnings(action="ignore"):  # it wants an example to try the model with, which costs seconds
        mlflow.pyfunc.save_model(
            path=str(folder / "model"),
            python_model=str(folder / "model.py"),
            artifacts={"checkpoint": str(folder / "checkpoint")},
            code_paths=[str(Path(__file__).parents[1])],
            signature=ModelSignature(request, Schema([ColSpec("long", "seed"), ColSpec("string", "png")])),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
            mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
        )


def connect(uri: str, registry: str) -> tuple[Any, Any]:
    """A client of MLflow and its registry, and what it raises."""
    _load()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    return MlflowClient(uri, registry), MlflowException


def one_line(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def without_password(uri: str) -> str:
    """A URI as it may be shown and written down."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _load() -> None:
    """Import MLflow with its messages kept off both outputs, which belong to the command."""
    environment.set_defaults()
    os.environ.update(
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",  # MLflow's own make 4 minutes a call; the next pass is ours
    )
    import mlflow

    logging.getLogger(mlflow.__name__).setLevel(logging.ERROR)
