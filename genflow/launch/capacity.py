"""Whether machines can ever hold the workers that somebody asks for. A value in, an error or nothing out."""

import math
from collections.abc import Iterable, Mapping

from genflow.errors import ResourceError


def require(nodes: Iterable[Mapping[str, float]], workers: int, cpus: float, gpus: float) -> None:
    """Refuse at once what would wait for ever.

    Args:
        nodes: what each of them has in all, whoever uses it now, such as `{"CPU": 8, "GPU": 1}`.
        workers: how many.
        cpus: CPUs each of them needs.
        gpus: GPUs each of them needs.

    Raises:
        ResourceError: not all of them would find a place, even on idle nodes.
    """
    every = list(nodes)
    room = sum(_fitting_workers(node, cpus, gpus) for node in every)
    if workers > room:
        have = ", ".join(f"{sum(node.get(kind, 0) for node in every):g} {kind}" for kind in ("CPU", "GPU"))
        each = f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        count = f"{workers} workers need {each} each" if workers > 1 else f"a worker needs {each}"
        raise ResourceError(
            f"{count}, and the cluster's {len(every)} node{'s' * (len(every) != 1)} with {have} can hold {room}",
            f"--set cluster.workers={room}, or add nodes" if room else "ask for less, or add nodes that have it",
        )


def _fitting_workers(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many workers an idle node holds."""
    limits = [node.get(kind, 0) / need for kind, need in (("CPU", cpus), ("GPU", gpus)) if need]
    return math.floor(min(limits) + 1e-9)
