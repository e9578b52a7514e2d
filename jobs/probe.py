"""Check on every node of a cluster: genflow's requirements, the store, and MLflow.

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

ANSWER_S = 90.0  # timeout for the nodes: a busy node starts a task late
NEEDED = ("torch", "pyarrow", "numpy", "scipy", "safetensors", "PIL", "pydantic", "yaml", "mlflow", "optuna")


def main(document: Json, emit: Emit) -> Probed:
    """Run one task on each node.

    Args:
        document: `inputs` has the URL of the `store`, a `marker` file in it that contains its own name, and MLflow's
            `uri`.
        emit: receives events.

    Returns:
        A `genflow.probe/1` document: for each node its name and address, and its problems with `requirements`, `store`
        and `MLflow`, each "" if there is none.
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
    problems = {"requirements": f"does not answer within {ANSWER_S:g} s", "store": "", "MLflow": ""}
    if answered:
        try:
            problems = ray.get(task)
        except Exception as error:
            problems["requirements"] = f"cannot run a task: {str(error).strip().splitlines()[-1]}"
    return {"name": node["NodeManagerHostname"], "address": node["NodeManagerAddress"], **problems}


@ray.remote(max_retries=0)
def check_node(inputs: Json) -> Json:
    """Check this node."""
    return {"requirements": missing_requirements(), "store": store_problem(inputs["store"], inputs["marker"]),
            "MLflow": mlflow_problem(inputs["uri"])}  # fmt: skip


def missing_requirements() -> str:
    """The missing requirements of genflow on this node; "" if there are none."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"lacks {', '.join(absent)}" if absent else ""


def store_problem(store: str, marker: str) -> str:
    """Why this node cannot use the store; "" if it can."""
    if "://" in store:
        try:
            Store(store).artifacts("datasets")
        except GenflowError as error:
            return f"does not reach the store {store}: {error.message}"
        return ""
    try:
        if Path(marker).read_text(encoding="utf-8") != Path(marker).stem:
            return f"sees another folder at {store}"
    except OSError as error:
        return f"does not see the store {store}: {error.strerror}"
    return "" if os.access(store, os.W_OK) else f"may not write to the store {store}"


def mlflow_problem(uri: str) -> str:
    """Why this node cannot reach MLflow; "" if it can."""
    if not uri.startswith("http"):
        return ""
    try:
        status = http.request(f"{uri.rstrip('/')}/health", timeout=5).status
    except http.RequestFailed as error:
        return f"does not reach MLflow at {uri}: {error}"
    # a server that asks for a password is reachable; the sender of the metrics checks the password
    return f"finds no MLflow at {uri}: it answers {status}" if status == 404 or status >= 500 else ""


if __name__ == "__main__":
    execute(main)
