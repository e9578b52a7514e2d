"""MLflow's database: its URI, and its creation before any job runs."""

import os
import re
import sys
from pathlib import Path

from genflow.errors import SetupError, UsageError
from genflow.storage.files import explain_disk_errors, sync_folder
from genflow.storage.store import Store
from genflow.tracking.mlflow_client import create_database


def tracking_uri(store: Store) -> str:
    """MLFLOW_TRACKING_URI, with the path of a database made absolute; by default a database in the store.

    Jobs run in another folder, so the command that starts a job passes this value to it.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"sqlite:///{store.root / 'mlflow.db'}"
    path = database_path(uri)
    return f"sqlite:///{path.absolute()}" if path else uri


def prepare(store: Store) -> str:
    """Create MLflow's sqlite database if it does not exist, and return the tracking URI.

    Two processes that open an empty database both migrate it, and usually both fail. Therefore one process creates it
    under a lock and another name, and renames the finished file.

    Raises:
        ResourceError: the disk is full.
        SetupError: the folder cannot be written.
    """
    uri = tracking_uri(store)
    path = database_path(uri)
    if path is None or _exists(path):
        return uri
    with Store(path.parent).lock("mlflow", path.name), explain_disk_errors(path):
        if not _exists(path):
            attempt = path.with_name(f"{path.name}.tmp")
            attempt.unlink(missing_ok=True)  # left by a process that was killed here
            create_database(attempt, artifacts_uri(store))
            os.replace(attempt, path)
            sync_folder(path.parent)
    return uri


def refuse_local_uri_on_cluster(uri: str, nodes: int) -> None:
    """Check that every node can reach MLflow.

    Raises:
        SetupError: `uri` is a file on one machine, and the cluster has several nodes.
    """
    if nodes > 1 and re.match(r"sqlite:|file:|(?![a-z0-9+-]+:)", uri):
        raise SetupError(
            f"MLflow logs to {uri}, a file on one machine, and the cluster has {nodes} nodes",
            "run `mlflow server` on a machine that all nodes can reach and set MLFLOW_TRACKING_URI=http://HOST:5000",
        )


def ui_command(store: Store, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """The command that serves MLflow's pages. `environment.set_defaults()` turns off its job runner and telemetry.

    Raises:
        UsageError: the tracking URI is a server already.
    """
    uri = prepare(store)
    if not uri.startswith("sqlite:"):
        raise UsageError(f"MLflow logs to {uri}, not to this store", f"open {uri}, or unset MLFLOW_TRACKING_URI")
    where = ["--backend-store-uri", uri, "--artifacts-destination", artifacts_uri(store)]
    return [sys.executable, "-m", "mlflow", "server", *where, "--host", host, "--port", str(port), "--workers", "1"]


def database_path(uri: str) -> Path | None:
    """The file of an absolute sqlite URI; None for any other URI."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _exists(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def artifacts_uri(store: Store) -> str:
    """Where MLflow keeps the files of runs when its database is in the store."""
    return (store.root / "mlartifacts").as_uri()
