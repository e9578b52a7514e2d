"""Check whether the nodes of a cluster have enough resources for the requested workers."""

import math
from collections.abc import Iterable, Mapping

from genflow.errors import ResourceError


def require(nodes: Iterable[Mapping[str, float]], workers: int, cpus: float, gpus: float) -> None:
    """Reject a request that Ray would keep waiting forever.

    Args:
        nodes: total resources of each node, used or not, such as `{"CPU": 8, "GPU": 1}`.
        workers: number of workers.
        cpus: CPUs per worker.
        gpus: GPUs per worker.

    Raises:
        ResourceError: even idle nodes cannot run all workers at the same time.
    """
    available = list(nodes)
    fits = fitting(available, cpus, gpus)
    if workers > fits:
        total = ", ".join(f"{sum(node.get(kind, 0) for node in available):g} {kind}" for kind in ("CPU", "GPU"))
        each = f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        count = f"{workers} workers need {each} each" if workers > 1 else f"a worker needs {each}"
        nodes_of = f"{len(available)} node{'s' * (len(available) != 1)} with {total}"
        raise ResourceError(
            f"{count}, but the cluster's {nodes_of} can run {fits}",
            f"--set cluster.workers={fits}, or add nodes" if fits else "request less, or add larger nodes",
        )


def fitting(nodes: Iterable[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """The number of workers that idle nodes with these resources can run at the same time."""
    return sum(_fitting_workers(node, cpus, gpus) for node in nodes)


def _fitting_workers(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Number of workers that fit on an idle node."""
    limits = [node.get(kind, 0) / need for kind, need in (("CPU", cpus), ("GPU", gpus)) if need]
    return math.floor(min(limits) + 1e-9)
