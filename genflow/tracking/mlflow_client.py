"""Import MLflow, its client, its database, and the two kinds of its errors.

`MlflowUnavailable` ends a replay, and the rest is sent later. `MlflowRejected` (an invalid name, a missing file)
concerns one entry, which is recorded and skipped, so that later entries are still sent.

Only this module, `journal_replay` and `model_package` import MLflow, and `pyfunc_model`, which MLflow itself executes.
The imports are inside the functions because they take two seconds.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genflow.storage.manifest import sync_and_hash
from genflow.system import environment

REJECTION_CODES = {
    "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"
}  # fmt: skip

class MlflowUnavailable(Exception):  # noqa: N818  not a fault of this program
    """MLflow cannot accept requests now."""


class MlflowNotFound(MlflowUnavailable):
    """MLflow does not have the requested object."""


class MlflowRejected(Exception):  # noqa: N818
    """MLflow will never accept this entry."""


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
    load()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{file}", artifacts).engine.dispose()
    sync_and_hash(file)


def latest_revision() -> str:
    """The revision of the database's schema that the installed MLflow uses."""
    load()
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def is_known_revision(revision: str) -> bool:
    """Whether the installed MLflow can upgrade a database from this revision of its schema."""
    import mlflow.store.db_migrations as migrations

    return any(file for folder in migrations.__path__ for file in Path(folder).glob(f"versions/{revision}_*.py"))


def connect(uri: str, registry: str) -> tuple[Any, Any]:
    """A client of MLflow and its registry, and the exception class that it raises."""
    load()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    return MlflowClient(uri, registry), MlflowException


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def without_password(uri: str) -> str:
    """A URI without user name and password, for messages and files."""
    return re.sub(r"//[^/@]*@", "//", uri)


def load() -> None:
    """Import MLflow and silence its messages on stdout and stderr, which belong to the command."""
    environment.set_defaults()
    os.environ.update(
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",  # MLflow's retries take 4 minutes per call; the next replay retries
    )
    import mlflow

    logging.getLogger(mlflow.__name__).setLevel(logging.ERROR)
