"""MLflow's model registry by genflow's names: which run an alias or a version means, and who gets an alias.

    models:/pictures@champion      the version that has the alias
    models:/pictures/3             a version
    models:/pictures               the newest version

A run registers its last checkpoint under its own name, or under the name that it is promoted with.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from genflow.errors import SetupError, UsageError
from genflow.storage.store import Artifact, Store
from genflow.tracking.database import prepare
from genflow.tracking.journal import Journal, journal_path
from genflow.tracking.mlflow_client import connect, one_line, without_password
from genflow.tracking.sync import replay

SCHEME = "models:/"
ALIAS = r"[A-Za-z0-9_-]{1,100}"


def run_of(store: Store, reference: str) -> str:
    """The id of the run that a `models:/` reference means.

    Raises:
        UsageError: MLflow knows no such model, version or alias.
        SetupError: MLflow does not answer.
    """
    found = re.fullmatch(rf"models:/([^/@]+)(?:@({ALIAS})|/([0-9]+))?", reference)
    if found is None:
        raise UsageError(f"{reference} names no model", "models:/NAME@ALIAS, models:/NAME/VERSION, or models:/NAME")
    name, alias, number = found.groups()
    with _client(store) as client:
        if alias:
            version = client.get_model_version_by_alias(name, alias)
        elif number:
            version = client.get_model_version(name, number)
        else:
            version = max(_versions(client, name), key=lambda each: int(each.version), default=None)
        if version is None:
            raise UsageError(f"MLflow knows no model {name}", "genflow promote RUN --alias champion")
        run = client.get_run(version.run_id).data.tags.get("genflow.run")
    if not run:
        raise UsageError(f"{reference} is a model that genflow did not make", "genflow runs ls")
    return str(run)


def promote(store: Store, run: Artifact, name: str, alias: str) -> str:
    """Give an alias to a run's version of a model, which is registered if it is not yet.

    Args:
        store: where the run is.
        run: a finished run.
        name: of the model; empty: the run's own.
        alias: such as `champion`; it leaves the version that has it now.

    Returns:
        The reference that it can be served by.

    Raises:
        UsageError: the alias or the name cannot be one.
        SetupError: MLflow does not answer.
    """
    name = name or run.name
    if not re.fullmatch(ALIAS, alias) or re.fullmatch(r"latest|v[0-9]+", alias):
        raise UsageError(f"--alias {alias}: letters, digits, - and _ alone, and neither `latest` nor v1, v2, ...")
    if not re.fullmatch(r"[^/:.%\"']{1,200}", name):
        raise UsageError(f"--name {name}: no / : . % and quotes")
    from genflow.training.checkpoint import Checkpoints

    newest = Checkpoints(run.path / "checkpoints").newest()
    if newest is None:
        raise UsageError(f"run {run.id} has no readable checkpoint", "train it again")
    meta = run.meta
    with Journal(journal_path(store.root, run.id), experiment=str(meta.get("dataset_name")), name=run.name) as journal:
        journal.model(newest, name, step=int(meta.get("steps", 0)))
    sent = replay(store, run.id, deadline_s=120.0)
    if not sent.complete:
        raise SetupError(f"MLflow did not take the model: {sent.problem}", "genflow doctor")
    with _client(store) as client:
        own = [v for v in _versions(client, name) if client.get_run(v.run_id).data.tags.get("genflow.run") == run.id]
        if not own:
            raise SetupError(f"MLflow has no version of {name} from run {run.id}", "genflow doctor")
        client.set_registered_model_alias(name, alias, max(own, key=lambda v: int(v.version)).version)
    return f"{SCHEME}{name}@{alias}"


def _versions(client: Any, name: str) -> list[Any]:
    return list(client.search_model_versions(f"name = '{name}'"))


@contextmanager
def _client(store: Store) -> Iterator[Any]:
    """MLflow's client; its errors become ours."""
    uri = prepare(store)
    client, wrong = connect(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)
    try:
        yield client
    except wrong as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UsageError(f"MLflow: {one_line(error)}", "genflow promote RUN --alias champion") from error
        raise SetupError(f"MLflow at {without_password(uri)}: {one_line(error)[:300]}", "genflow doctor") from error
