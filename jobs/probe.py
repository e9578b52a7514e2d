"""Ask every node of a cluster what it sees: the store, MLflow, genflow's requirements.

    python -m jobs.probe recipe.yaml
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genflow.errors import GenflowError
from genflow.pipeline.results import Probed
from genflow.storage.store import Store
from genflow.system import http
from genflow.system.documents import Json
from jobs.runtime.cluster import ray_cluster
from jobs.runtime.entrypoint import Emit, execute

ANSWER_S = 90.0  # the longest that a node is waited for: a busy one takes its time to start a task
NEEDED = ("torch", "pyarrow", "numpy", "scipy", "safetensors", "PIL", "pydantic", "yaml", "mlflow", "optuna")


def main(document: Json, emit: Emit) -> Probed:
    """One task a node.

    Args:
        document: `inputs` has the `store`'s place, a `marker` in it with its own name in it, and MLflow's `uri`.
        emit: speaks to whoever waits.

    Returns:
        A `genflow.probe/1` document: of each node its name and address, and what is wrong there with `requirements`,
        `store` and `MLflow`; nothing, if they are well.
    """
    inputs = document["inputs"]
    with ray_cluster():
        nodes = [node for node in ray.nodes() if node["Alive"]]
        asked = {
            check_node.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(inputs): node
            for node in nodes
        }
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
        return {"schema": "genflow.probe/1", "nodes": [_answer(task, node, task in answered)
                                                       for task, node in asked.items()]}  # fmt: skip


def _answer(task: Any, node: Json, answered: bool) -> Json:
    told = {"requirements": f"does not answer within {ANSWER_S:g} s", "store": "", "MLflow": ""}
    if answered:
        try:
            told = ray.get(task)
        except Exception as error:
            told["requirements"] = f"cannot run a task: {str(error).strip().splitlines()[-1]}"
    return {"name": node["NodeManagerHostname"], "address": node["NodeManagerAddress"], **told}


@ray.remote(max_retries=0)
def check_node(inputs: Json) -> Json:
    """On a node: what is wrong with it."""
    return {"requirements": missing_requirements(), "store": store_problem(inputs["store"], inputs["marker"]),
            "MLflow": mlflow_problem(inputs["uri"])}  # fmt: skip


def missing_requirements() -> str:
    """What of genflow's requirements a node lacks."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"lacks {', '.join(absent)}" if absent else ""


def store_problem(store: str, marker: str) -> str:
    """Why a node does not see the store."""
    if "://" in store:
        try:
            Store(store).artifacts("datasets")
        except GenflowError as error:
            return f"does not reach the store {store}: {error.message}"
        return ""
    try:
        if Path(marker).read_text() != Path(marker).stem:
            return f"sees another folder at {store}"
    except OSError as error:
        return f"does not see the store {store}: {error.strerror}"
    return "" if os.access(store, os.W_OK) else f"may not write to the store {store}"


def mlflow_problem(uri: str) -> str:
    """Why a node does not reach MLflow."""
    if not uri.startswith("http"):
        return ""
    try:
        status = http.request(f"{uri.rstrip('/')}/health", timeout=5).status
    except http.RequestFailed as error:
        return f"does not reach MLflow at {uri}: {error}"
    # a server that wants a password is there; whether it accepts ours is checked where the metrics are sent
    return f"finds no MLflow at {uri}: it answers {status}" if status == 404 or status >= 500 else ""


if __name__ == "__main__":
    execute(main)
