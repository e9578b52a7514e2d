"""What a cluster's machines can hold: those that are there, and those that an autoscaler may add."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import ray

from genflow.errors import GenflowError
from genflow.recipe.files import read
from genflow.recipe.schema import Cluster
from genflow.storage.store import Store

BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")  # `ray up` leaves it on the head, where entry points run


def node_resources() -> list[dict[str, float]] | None:
    """What each node has in all, those that an autoscaler may add included; None where that cannot be known."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not any("ray.io/node-group" in node.get("Labels", {}) for node in nodes):
        return [node["Resources"] for node in nodes]  # nobody adds nodes here
    path = BOOTSTRAP_CONFIG.expanduser()
    return nodes_when_grown(read(path)) if path.is_file() else None  # KubeRay keeps it elsewhere


def nodes_when_grown(launched: dict[str, Any]) -> list[dict[str, float]]:
    """The nodes of a cluster.yaml, once it has grown as far as it may."""
    most = launched.get("max_workers", 2)
    nodes = []
    for name, kind in launched.get("available_node_types", {}).items():
        count = 1 if name == launched.get("head_node_type") else min(most, kind.get("max_workers", most))
        nodes += [kind.get("resources", {})] * count
    return nodes


def storage(store: Store) -> dict[str, Any]:
    """Where Ray Train and Tune keep what is theirs: every node that takes part must see it.

    A folder store is seen by all. Of a bucket, the mirror will do where there is one node.
    """
    if store.shared is None or len([node for node in ray.nodes() if node["Alive"]]) == 1:
        return {"storage_path": str(store.root / "ray")}
    bucket = store.shared.bucket
    return {"storage_path": bucket.path("ray"), "storage_filesystem": bucket.files}


def delete_storage(store: Store, name: str) -> None:
    """Let go of what Ray kept there under a name."""
    shutil.rmtree(store.root / "ray" / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        (store.root / "ray").rmdir()
    with contextlib.suppress(GenflowError):
        if store.shared and len([node for node in ray.nodes() if node["Alive"]]) > 1:
            store.shared.bucket.delete_all(f"ray/{name}")


def are_busy(cluster: Cluster) -> bool:
    """Whether the workers have to wait for somebody else's to end, or for a node to come."""
    free = ray.available_resources()
    return cluster.workers * cluster.cpus > free.get("CPU", 0) or cluster.workers * cluster.gpus > free.get("GPU", 0)
