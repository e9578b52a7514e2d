"""Import MLflow, its client, its database, and the two kinds of its errors.

`MlflowUnavailable` ends a replay, and the rest is sent later. `MlflowRejected` (an invalid name, a missing file)
concerns one entry, which is recorded and skipped, so that later entries are still sent.

Only this module, `journal_replay` and `model_package` import MLflow, and `pyfunc_model` and `pages`, which MLflow
itself executes. The imports are inside the functions because they take two seconds.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from genflow.storage.manifest import sync_and_hash
from genflow.system import environment

CALL_TIMEOUT_S = 10  # of one request
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
        limit_s: total seconds of requests; after them no further request begins.
        waiting: whether a request is under way.
        answered: the number of answered requests.
        seconds: the time of all requests so far, without the work between them.
    """

    limit_s: float = math.inf
    waiting: bool = False
    answered: int = 0
    seconds: float = 0.0


class Caller:
    """Sends requests, and raises MLflow's errors as the errors of this module.

    Args:
        public_uri: MLflow's tracking URI without a password, for messages.
        timeout_s: seconds to wait for the answer to a request; at least 1, at most CALL_TIMEOUT_S.
        requests: receives what the caller is waiting for.
    """

    def __init__(self, public_uri: str, timeout_s: float, requests: Requests) -> None:
        self._public_uri, self._requests = public_uri, requests
        self._timeout_s = max(1, min(CALL_TIMEOUT_S, int(timeout_s)))

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Send one request, and wait at most `timeout_s` for its answer.

        Raises:
            MlflowNotFound: MLflow does not have the object.
            MlflowRejected: MLflow will never accept the request.
            MlflowUnavailable: any other error, or the requests have taken longer than `Requests.limit_s`.
        """
        requests = self._requests
        if requests.seconds >= requests.limit_s:
            text = f"did not accept everything within {requests.limit_s:g} s; the next time continues there"
            raise MlflowUnavailable(f"MLflow at {self._public_uri} {text}")
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(self._timeout_s)
        with self.translated_errors():
            requests.waiting, start = True, monotonic()
            try:
                answer = function(*args, **options)
                requests.answered += 1
                return answer
            finally:
                requests.waiting = False
                requests.seconds += monotonic() - start

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Raise MLflow's errors as the errors of a call."""
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
            raise MlflowUnavailable(f"MLflow at {self._public_uri}: {text[:300]}") from error


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
