"""An experiment of MLflow: one for each dataset, with a table of quality, family and time as its saved view."""

import json
from contextlib import suppress
from typing import Any

from genflow.system.documents import Json
from genflow.tracking.mlflow_client import Caller, MlflowRejected, MlflowUnavailable, one_line

VIEW = "quality"  # the key of the saved view, in its tag and in an address
TABLE: Json = {
    "selectedColumns": [
        "metrics.`quality/fd`", "metrics.`quality/fd_x_floor`", "metrics.`minutes`", "tags.`family`"
    ],
    "orderByKey": "metrics.`quality/fd`",
    "orderByAsc": True,
    "searchFilter": "",
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "columnOrder": [],
    "columnWidths": {},
}  # fmt: skip
"""The state of MLflow's table of runs, in the form in which its pages save one."""


def find_or_create(call: Caller, client: Any, name: str, artifacts: str | None) -> str:
    """The experiment's id. Creates the experiment if it does not exist, and restores it if it was deleted.

    Args:
        call: sends the requests.
        client: a client of MLflow.
        name: the experiment's name.
        artifacts: the artifact location of a new experiment; None: MLflow's default.

    Raises:
        MlflowUnavailable: MLflow cannot create it now.
    """
    experiment = call(client.get_experiment_by_name, name)
    if experiment is None:
        try:
            id = str(call(client.create_experiment, name, artifact_location=artifacts))
        except MlflowRejected as error:
            experiment = call(client.get_experiment_by_name, name)
            if experiment is None:
                raise MlflowUnavailable(one_line(error)) from error
            # otherwise another run has created it
        else:
            _set_tags(call, client, id, {})
            return id
    if experiment.lifecycle_stage == "deleted":
        call(client.restore_experiment, experiment.experiment_id)
    _set_tags(call, client, experiment.experiment_id, experiment.tags)
    return str(experiment.experiment_id)


def _set_tags(call: Caller, client: Any, id: str, present: dict[str, str]) -> None:
    """Set the tags that are missing; a view that a user has changed stays. They are not worth an error."""
    view = {"name": "Quality", "createdAt": 1, "updatedAt": 1, "state": json.dumps(TABLE)}
    tags = {
        "mlflow.experimentKind": "custom_model_development",  # otherwise the pages guess, and may show those of agents
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }
    with suppress(MlflowUnavailable, MlflowRejected):  # such as a user who may add runs only
        for key, value in tags.items():
            if key not in present:
                call(client.set_experiment_tag, id, key, value)
