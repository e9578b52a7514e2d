"""The resources of a cluster's nodes, including those that an autoscaler may add, and Ray's storage."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import ray

from genflow.errors import GenflowError
from genflow.recipe.files import read
from genflow.recipe.schema import Cluster
from genflow.storage.store import Store

BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")  # `ray up` writes it on the head node, where entry points run


def node_resources() -> list[dict[str, float]] | None:
    """The total resources of each node, including nodes that an autoscaler may add; None if they are unknown."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not any("ray.io/node-group" in node.get("Labels", {}) for node in nodes):
        return [node["Resources"] for node in nodes]  # there is no autoscaler
    path = BOOTSTRAP_CONFIG.expanduser()
    return nodes_when_grown(read(path)) if path.is_file() else None  # KubeRay has no such file


def nodes_when_grown(launched: dict[str, Any]) -> list[dict[str, float]]:
    """The nodes of a cluster.yaml at its maximum size."""
    most = launched.get("max_workers", 2)
    nodes = []
    for name, kind in launched.get("available_node_types", {}).items():
        count = 1 if name == launched.get("head_node_type") else min(most, kind.get("max_workers", most))
        nodes += [kind.get("resources", {})] * count
    return nodes


def storage(store: Store) -> dict[str, Any]:
    """The storage arguments of Ray Train and Tune: a place that every node can access.

    All nodes can access a folder store. With a bucket, one node uses its local mirror, and several use the bucket.
    """
    if store.mirror is None or len([node for node in ray.nodes() if node["Alive"]]) == 1:
        return {"storage_path": str(store.root / "ray")}
    bucket = store.mirror.bucket
    return {"storage_path": bucket.path("ray"), "storage_filesystem": bucket.filesystem}


def delete_storage(store: Store, name: str) -> None:
    """Delete what Ray stored under a name."""
    shutil.rmtree(store.root / "ray" / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        (store.root / "ray").rmdir()
    with contextlib.suppress(GenflowError):
        if store.mirror and len([node for node in ray.nodes() if node["Alive"]]) > 1:
            store.mirror.bucket.delete_all(f"ray/{name}")


def are_busy(cluster: Cluster, gpus: float) -> bool:
    """Whether the workers, with so many GPUs each, must wait for other jobs to end or for a new node."""
    free = ray.available_resources()
    return cluster.workers * cluster.cpus > free.get("CPU", 0) or cluster.workers * gpus > free.get("GPU", 0)
