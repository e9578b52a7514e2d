"""MLflow's database: its URI, and its creation before any job runs."""

import contextlib
import os
import re
import shlex
import sqlite3
import sys
from pathlib import Path

from genflow.errors import SetupError, UsageError
from genflow.storage.files import explain_disk_errors, sync_folder
from genflow.storage.store import Store
from genflow.tracking import pages
from genflow.tracking.mlflow_client import create_database, is_known_revision, latest_revision, without_password


def tracking_uri(store: Store) -> str:
    """MLFLOW_TRACKING_URI, with the path of a database made absolute; by default a database in the store.

    Jobs run in another folder, so the command that starts a job passes this value to it.

    Raises:
        SetupError: the address of a database in this store would name another file.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        if found := re.search(r"\?|%[0-9a-fA-F]{2}", str(store.root)):  # the query of the address, an escape
            raise SetupError(
                f"the path of the store contains {found[0]!r}, which MLflow reads as part of an address: {store.root}",
                "rename the folder, or set GENFLOW_STORE to another one",
            )
        uri = f"sqlite:///{store.root / 'mlflow.db'}"
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


def check(uri: str) -> None:
    """Check that a database can be used by the installed MLflow, before MLflow opens it.

    Raises:
        SetupError: the file is not a database, is a database of another program, or was written by another version of
            MLflow.
    """
    path = database_path(uri)
    if path is None or not _exists(path):
        return
    aside = f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.old')}; genflow ui makes another from the journals"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
            found = connection.execute("select version_num from alembic_version").fetchone() if tables else None
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
            raise  # the disk, or a lock
        raise SetupError(f"{path} is not a database of MLflow", aside) from error
    if found is None or found[0] == latest_revision():
        return
    if is_known_revision(found[0]):
        upgrade = f"{sys.executable} -m mlflow db upgrade {shlex.quote(uri)}"
        raise SetupError(f"{path} was written by an older MLflow (schema {found[0]})", f"{upgrade}, after a copy of it")
    raise SetupError(f"{path} was written by a newer MLflow (schema {found[0]})", f"pip install -U mlflow, or {aside}")


def made_at(uri: str) -> float:
    """When the database was created, in seconds since 1970; 0 for a server, or if there is no database."""
    path = database_path(uri)
    if path is None or not _exists(path):
        return 0.0
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            ((made,),) = connection.execute("select min(creation_time) from experiments")
    except sqlite3.DatabaseError:  # `check` says what is wrong with it
        return 0.0
    return (made or 0) / 1000


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
        public = without_password(uri)
        raise UsageError(f"MLflow logs to {public}, not to this store", f"open {public}, or unset MLFLOW_TRACKING_URI")
    where = ["--backend-store-uri", uri, "--artifacts-destination", artifacts_uri(store)]
    where += ["--app-name", pages.APP] if pages.is_registered() else []
    return [sys.executable, "-m", "mlflow", "server", *where, "--host", host, "--port", str(port), "--workers", "1"]


def database_path(uri: str) -> Path | None:
    """The file of an absolute sqlite URI; None for any other URI."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _exists(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def artifacts_uri(store: Store) -> str:
    """Where MLflow keeps the files of runs when its database is in the store."""
    return (store.root / "mlartifacts").as_uri()
