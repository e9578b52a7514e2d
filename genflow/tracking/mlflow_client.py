"""The only module that imports MLflow: it sends the entries of a journal until a request has no answer.

Sending is idempotent. A metric is identified by key, time, step and value; an image by key, step and time; a model
version by its checkpoint; the run by a tag with the journal's id. The cursor, which stores how far a journal was sent,
may therefore be lost at any time.

There are two kinds of errors. `MlflowUnavailable` ends the replay, and the rest is sent later. `MlflowRejected` (an
invalid name, a missing file) concerns one entry, which is recorded and skipped, so that later entries are still sent.

The imports are inside the functions because they take two seconds.
"""

import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from genflow.storage.manifest import MANIFEST, describe, sync_and_hash
from genflow.storage.store import Store
from genflow.system import environment
from genflow.tracking.journal import Cursor, Entry, entries, has_writer, header

BATCH = 1000  # largest number of metrics in one request
CALL_TIMEOUT_S = 10  # of one request
MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "safetensors", "torch")
REJECTION_CODES = {
    "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"
}  # fmt: skip

Row = tuple[str, float, int, int]  # key, value, milliseconds, step


class MlflowUnavailable(Exception):  # noqa: N818  not a fault of this program
    """MLflow cannot accept requests now."""


class MlflowNotFound(MlflowUnavailable):
    """MLflow does not have the requested object."""


class MlflowRejected(Exception):  # noqa: N818
    """MLflow will never accept this entry."""


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


@dataclass
class Requests:
    """What a replay is waiting for. A thread may read it to distinguish a server that hangs from work on this machine.

    Args:
        waiting: whether a request is under way.
        answered: the number of answered requests.
    """

    waiting: bool = False
    answered: int = 0


def create_database(file: Path, artifacts: str) -> None:
    """Create MLflow's sqlite database with all migrations, and fsync it."""
    _load()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{file}", artifacts).engine.dispose()
    sync_and_hash(file)


def latest_revision() -> str:
    """The revision of the database's schema that the installed MLflow uses."""
    _load()
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def is_known_revision(revision: str) -> bool:
    """Whether the installed MLflow can upgrade a database from this revision of its schema."""
    import mlflow.store.db_migrations as migrations

    return any(file for folder in migrations.__path__ for file in Path(folder).glob(f"versions/{revision}_*.py"))


class JournalReplay:
    """One replay of one journal. The caller holds the journal's lock.

    Args:
        path: the journal.
        store: the store; paths in the journal are relative to its root.
        uri: MLflow's tracking URI.
        artifacts: the artifact location of a new experiment; None: MLflow's default.
        timeout_s: seconds to wait for the answer to a request; at least 1, at most CALL_TIMEOUT_S.
        sent: receives the result.
        requests: receives what the replay is waiting for.
    """

    def __init__(self, path: Path, store: Store, uri: str, artifacts: str | None, timeout_s: float,
                 sent: SendResult, requests: Requests) -> None:  # fmt: skip
        self.path, self.store, self.root, self.uri, self.artifacts = path, store, store.root, uri, artifacts
        self.timeout_s, self.sent, self.requests = max(1, min(CALL_TIMEOUT_S, int(timeout_s))), sent, requests
        self.public_uri = without_password(uri)
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

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Send one request, and wait at most `timeout_s` for its answer.

        Raises:
            MlflowNotFound: MLflow does not have the object.
            MlflowRejected: MLflow will never accept the request.
            MlflowUnavailable: any other error.
        """
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(self.timeout_s)
        with self._translated_errors():
            self.requests.waiting = True
            try:
                answer = function(*args, **options)
                self.requests.answered += 1
                return answer
            finally:
                self.requests.waiting = False

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise MLflow's errors as the errors of `_call`."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            text = one_line(error)
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise MlflowNotFound(text) from error
            if error.error_code in REJECTION_CODES:
                raise MlflowRejected(text) from error
            if "Max retries exceeded" in text:  # the reason is the last part of urllib3's nested message
                text = text.rpartition(": ")[2].strip("\"')")
            raise MlflowUnavailable(f"MLflow at {self.public_uri}: {text[:300]}") from error

    # --- Destination: one experiment per dataset, one run per journal

    def _connect(self, first: Entry) -> None:
        _load()
        from mlflow import MlflowClient

        journal = first["journal"]
        registry = os.environ.get("MLFLOW_REGISTRY_URI") or self.uri  # MLflow's default is the current folder
        self.client = self._call(MlflowClient, self.uri, registry)
        sent_here = (self.cursor.uri, self.cursor.journal) == (self.public_uri, journal["id"])
        if sent_here and self._run_exists(self.cursor.run):
            return
        experiment = self._experiment(journal["experiment"])
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

    def _experiment(self, name: str) -> str:
        """The experiment's id. Creates the experiment if it does not exist, and restores it if it was deleted."""
        experiment = self._call(self.client.get_experiment_by_name, name)
        if experiment is None:
            try:
                return str(self._call(self.client.create_experiment, name, artifact_location=self.artifacts))
            except MlflowRejected as error:
                experiment = self._call(self.client.get_experiment_by_name, name)
                if experiment is None:
                    raise MlflowUnavailable(one_line(error)) from error
                # otherwise another run has created it
        if experiment.lifecycle_stage == "deleted":
            self._call(self.client.restore_experiment, experiment.experiment_id)
        return str(experiment.experiment_id)

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
            self._model(self._file(entry["model"]["checkpoint"]), entry["model"]["name"], entry["step"])
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

    def _model(self, checkpoint: Path, name: str, step: int) -> None:
        """Register a checkpoint as a version of a model. A tag of the version names the checkpoint."""
        from mlflow.entities import LoggedModelOutput

        tag = {"genflow.checkpoint": f"{self.cursor.journal}/{checkpoint.name}"}
        try:
            self._call(self.client.create_registered_model, name)
        except MlflowRejected:  # it exists, or its name is invalid; then the next call raises
            versions = self._call(self.client.search_model_versions, f"name = '{name}'")
            if any(tag.items() <= version.tags.items() for version in versions):
                return
        query = f"tags.`genflow.checkpoint` = '{tag['genflow.checkpoint']}'"
        existing = self._call(self.client.search_logged_models, [self.cursor.experiment], query)
        origin = {"source_run_id": self.cursor.run, "tags": tag}
        create = self.client.create_logged_model
        model = existing[0] if existing else self._call(create, self.cursor.experiment, "sampler", **origin)
        with tempfile.TemporaryDirectory(prefix="genflow-") as folder:
            copy_model_files(checkpoint, self.root / "runs" / self.path.stem, Path(folder))
            with self._translated_errors():  # takes seconds of this machine, and none of the server
                save_pyfunc_model(Path(folder), run_id=self.cursor.run, model_id=model.model_id)
            self._call(self.client.log_model_artifacts, model.model_id, f"{folder}/model")
        self._call(self.client.finalize_logged_model, model.model_id, "READY")
        with suppress(MlflowRejected):  # already logged
            self._call(self.client.log_outputs, self.cursor.run, [LoggedModelOutput(model.model_id, step)])
        origin = {"run_id": self.cursor.run, "model_id": model.model_id, "tags": tag}
        # by location: MLflow would look up "models:/ID" at its global URI, which is the current folder
        self._call(self.client.create_model_version, name, model.artifact_location, **origin)


def copy_model_files(checkpoint: Path, run: Path, folder: Path) -> None:
    """Copy the code and the files for sampling to a neutral folder, because MLflow writes the path into the model."""
    shutil.copy(MODEL_CODE, folder / "model.py")
    shutil.copytree(checkpoint, folder / "checkpoint", ignore=shutil.ignore_patterns("optimizer*"))
    for name in ("recipe.yaml", "facts.json"):
        if (run / name).is_file():
            shutil.copy(run / name, folder / "checkpoint")
    if (run / "autoencoder").is_dir():  # of a run on latents
        shutil.copytree(run / "autoencoder", folder / "checkpoint" / "autoencoder")
    manifest = describe(folder / "checkpoint", "exports", run.name)  # the checkpoint's lists the optimizer's state too
    (folder / "checkpoint" / MANIFEST).write_text(json.dumps(manifest, indent=1))


def save_pyfunc_model(folder: Path, *, run_id: str, model_id: str) -> None:
    """Save `folder`/model, an MLflow model without pickle, from the files of `copy_model_files`."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    optional = [ColSpec("double", name, required=False) for name in ("steps", "label")]  # may have missing values
    request = Schema([ColSpec("long", "n"), ColSpec("long", "seed"), *optional])
    with warnings.catch_warnings(action="ignore"):  # MLflow wants an input example, which costs seconds
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
    """A client of MLflow and its registry, and the exception class that it raises."""
    _load()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    return MlflowClient(uri, registry), MlflowException


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def without_password(uri: str) -> str:
    """A URI without user name and password, for messages and files."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _load() -> None:
    """Import MLflow and silence its messages on stdout and stderr, which belong to the command."""
    environment.set_defaults()
    os.environ.update(
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",  # MLflow's retries take 4 minutes per call; the next replay retries
    )
    import mlflow

    logging.getLogger(mlflow.__name__).setLevel(logging.ERROR)
