"""Say what a training waits for: nodes that are not there yet, at the start or after one was lost."""

import contextlib
import threading
import time
from collections.abc import Iterator

from genflow.evaluation.metrics.base import duration
from genflow.launch.capacity import fitting
from genflow.recipe.schema import Cluster
from genflow.system import events
from jobs.runtime.gpus import alive_nodes

POLL_S = 2.0  # between two looks at the nodes
AGAIN_S = 60.0  # between two lines about one wait


def asked(cluster: Cluster, gpus: float) -> str:
    """The workers of a training in words: `2 workers with 1 CPU and 1 GPU each`."""
    own = f"{cluster.cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
    return f"{cluster.workers} workers with {own} each" if cluster.workers > 1 else f"a worker with {own}"


@contextlib.contextmanager
def announced(cluster: Cluster, gpus: float, limit_s: float) -> Iterator[None]:
    """Within the block, a line says what is missing whenever the running nodes have no room for all workers.

    Args:
        cluster: the number of workers, and the CPUs of each.
        gpus: of each worker.
        limit_s: after so many seconds Ray gives up.
    """
    ended = threading.Event()

    def watch() -> None:
        since = said = 0.0
        while not ended.wait(POLL_S):
            with contextlib.suppress(Exception):  # the connection ends with the job
                now, room = time.monotonic(), fitting(alive_nodes(), cluster.cpus, gpus)
                if room >= cluster.workers:
                    since = 0.0
                    continue
                since = since or now
                if now - said >= AGAIN_S or since == now:
                    said = now
                    events.emit("note", message=line(cluster, gpus, room, now - since, limit_s))

    watcher = threading.Thread(target=watch, name="waiting", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(POLL_S)


def line(cluster: Cluster, gpus: float, room: int, waited_s: float, limit_s: float) -> str:
    """What is awaited, how long it has been, and how long it may take."""
    have = f"the running nodes have room for {room or 'none'}"
    so_far = f"waiting for {duration(waited_s)}" if waited_s >= 1 else "waiting"
    return f"{so_far} (at most {duration(limit_s)}) for nodes: {asked(cluster, gpus)}; {have}"
