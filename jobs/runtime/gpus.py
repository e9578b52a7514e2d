"""GPUs in Ray: how many each worker requests, and which device a worker uses."""

import os
import sys
from collections.abc import Mapping, Sequence

from genflow.errors import SetupError
from genflow.launch import capacity
from genflow.recipe.schema import Cluster
from genflow.system import devices, environment, events


def requested(cluster: Cluster, *, cpus: float | None = None) -> float:
    """The GPUs that each worker requests: with `auto` one, if there is one for every worker, else none.

    Args:
        cluster: the settings.
        cpus: CPUs of each worker; None: those of the settings.
    """
    if cluster.gpus != "auto":
        return cluster.gpus
    named = cluster.device if cluster.device != "auto" else os.environ.get(devices.BY_USER, "auto")
    if named.partition(":")[0] not in ("auto", "cuda"):
        return 0
    cpus = cluster.cpus if cpus is None else cpus
    if not _is_on_ray():
        return automatic([{"CPU": max(environment.cores(), cluster.workers * cpus), "GPU": _here()}], cluster, cpus)
    from jobs.runtime import resources

    nodes = resources.node_resources()
    return automatic(nodes if nodes is not None else alive_nodes(), cluster, cpus)


def automatic(nodes: Sequence[Mapping[str, float]], cluster: Cluster, cpus: float) -> float:
    """One GPU for each worker if the nodes have that many, else none; a note says if GPUs stay unused."""
    if capacity.fitting(nodes, cpus, 1) >= cluster.workers:
        return 1
    if found := sum(node.get("GPU", 0) for node in nodes):
        message = f"the {cluster.workers} workers use CPUs, because there are {found:g} GPUs for them"
        events.emit("note", message=f"{message}: --workers {max(1, int(found))} uses GPUs")
    return 0


def _here() -> int:
    """The GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def alive_nodes() -> list[dict[str, float]]:
    """The total resources of each running node."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def claim(wanted: str = "auto") -> str:
    """In a Ray task or actor: the device that it may use, which `devices.choose` returns from now on.

    A worker that requested no GPU sees all of them, and must not use any. Elsewhere the device is chosen as always.

    Args:
        wanted: of the recipe, `cluster.device`.

    Raises:
        UsageError: the variable GENFLOW_DEVICE names no device.
        SetupError: the recipe asks for CUDA, and this worker has none.
    """
    if not _is_worker():
        return devices.choose(wanted)
    os.environ.pop(devices.BY_RAY, None)  # of an earlier task in this process
    named = wanted if wanted != "auto" else os.environ.get(devices.BY_USER, "auto")
    devices.check(named)
    import ray
    import torch

    kind, given = named.partition(":")[0], bool(ray.get_gpu_ids())  # a worker sees only its GPUs, from number 0 on
    if wanted == "cuda" and not (given and torch.cuda.is_available()):
        why = "PyTorch finds no CUDA device" if given else "Ray gave this worker no GPU"
        raise SetupError(f"cluster.device=cuda, and {why}", "set cluster.gpus=1, or cluster.device=auto")
    if given and kind in ("auto", "cuda") and not torch.cuda.is_available():
        events.emit("warning", message="Ray gave a worker a GPU, and PyTorch finds no CUDA device: it uses the CPU",
                    hint="install PyTorch for CUDA on every node; --set cluster.gpus=0 requests none")  # fmt: skip
        given = False
    found = "cuda:0" if given and kind in ("auto", "cuda") else "mps" if kind == "mps" else "cpu"
    os.environ[devices.BY_RAY] = found
    return found


def _is_on_ray() -> bool:
    """Whether this process is connected to Ray; a process that has not imported it is not, and need not import it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _is_worker() -> bool:
    if not _is_on_ray():
        return False
    import ray

    context = ray.get_runtime_context()
    return bool(context.get_actor_id() or context.get_task_id())


def wanted_here(cluster: Cluster) -> str:
    """What a program that is alone on its device asks `devices.choose` for."""
    if cluster.device != "auto" or cluster.gpus == "auto":
        return cluster.device
    return "cuda" if cluster.gpus else "cpu"
