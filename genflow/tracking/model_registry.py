"""MLflow's model registry: find the run of an alias or a version, and set an alias.

    models:/pictures@champion      the version that has the alias
    models:/pictures/3             a version
    models:/pictures               the newest version

Promoting a run registers its last checkpoint under the run's name, or under a given name.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from genflow.errors import ResourceError, SetupError, UsageError
from genflow.storage.files import disk_error
from genflow.storage.store import Artifact, Store
from genflow.tracking.database import prepare
from genflow.tracking.journal import Journal, journal_path
from genflow.tracking.mlflow_client import connect, one_line, without_password
from genflow.tracking.sync import replay

SCHEME = "models:/"
ALIAS = r"[A-Za-z0-9_-]{1,100}"


def run_of(store: Store, reference: str) -> str:
    """The id of the run of a `models:/` reference.

    Raises:
        UsageError: MLflow has no such model, version or alias.
        SetupError: MLflow does not respond.
    """
    found = re.fullmatch(rf"models:/([^/@]+)(?:@({ALIAS})|/([0-9]+))?", reference)
    if found is None:
        hint = "models:/NAME@ALIAS, models:/NAME/VERSION, or models:/NAME"
        raise UsageError(f"{reference} is not a model reference", hint)
    name, alias, number = found.groups()
    with _client(store) as client:
        if alias:
            version = client.get_model_version_by_alias(name, alias)
        elif number:
            version = client.get_model_version(name, number)
        else:
            version = max(_versions(client, name), key=lambda each: int(each.version), default=None)
        if version is None:
            raise UsageError(f"MLflow has no model {name}", "genflow promote RUN --alias champion")
        run = client.get_run(version.run_id).data.tags.get("genflow.run")
    if not run:
        raise UsageError(f"{reference} is a model that genflow did not register", "genflow runs ls")
    return str(run)


def promote(store: Store, run: Artifact, name: str, alias: str) -> str:
    """Set an alias of a model to a run's version. Registers the version if it is not registered.

    Args:
        store: the store of the run.
        run: a finished run.
        name: the model's name; empty: the run's name.
        alias: such as `champion`; it moves from the version that has it now.

    Returns:
        The `models:/` reference, which `genflow serve` accepts.

    Raises:
        UsageError: the alias or the name is invalid.
        ResourceError: the disk is full or broken.
        SetupError: MLflow does not respond.
        DataError: the checkpoint differs from the run's manifest.
    """
    name = name or run.name
    if not re.fullmatch(ALIAS, alias) or re.fullmatch(r"latest|v[0-9]+", alias):
        raise UsageError(f"--alias {alias}: use only letters, digits, - and _, and neither `latest` nor v1, v2, ...")
    if not re.fullmatch(r"[^/:.%\"']{1,200}", name):
        raise UsageError(f"--name {name}: do not use / : . % or quotes")
    from genflow.training import checkpoint_folders

    newest = checkpoint_folders.of_run(run)
    meta = run.meta
    with Journal(journal_path(store.root, run.id), experiment=str(meta.get("dataset_name")), name=run.name) as journal:
        journal.model(newest, name, step=int(meta.get("steps", 0)))
    sent = replay(store, run.id, deadline_s=120.0)
    if not sent.complete:
        if isinstance(full := disk_error(SetupError(sent.problem), store.root), ResourceError):
            raise full
        raise SetupError(f"MLflow did not accept the model: {sent.problem}", "genflow doctor")
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
    """MLflow's client, whose errors are turned into genflow's."""
    uri = prepare(store)
    client, wrong = connect(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)
    try:
        yield client
    except wrong as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UsageError(f"MLflow: {one_line(error)}", "genflow promote RUN --alias champion") from error
        raise SetupError(f"MLflow at {without_password(uri)}: {one_line(error)[:300]}", "genflow doctor") from error
