"""Ray actors that write the missing shards of an artifact, each shard by its number."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from genflow.errors import GenflowError
from genflow.launch import capacity
from genflow.recipe.schema import Cluster
from genflow.storage.files import explain_disk_errors
from genflow.storage.store import Store
from jobs.runtime.entrypoint import Emit


class ShardWriter(Protocol):
    """Writes shards whose bytes are a function of their number, so that any actor may write any shard."""

    def write(self, path: Path, first: int, last: int) -> None:
        """Write the rows first .. last - 1 to a file, atomically."""
        ...


def write_missing(
    make: Callable[[Path, str], ShardWriter],
    folder: Path,
    shards: list[tuple[str, int, int]],
    cluster: Cluster,
    emit: Emit,
    *,
    with_gpu: bool = True,
    **fields: Any,
) -> float:
    """Write the shards that do not exist, with one actor per shard, CPU or GPU, whichever are fewest.

    Args:
        make: makes the writer of an actor from the folder and a torch device's name.
        folder: of the artifact, in the store; the caller holds the artifact's lock.
        shards: (file in the folder, first row, last row + 1) of each shard of the artifact.
        cluster: the number of actors, 1 for as many as fit, and the GPUs of each.
        emit: receives progress.
        with_gpu: whether a writer can use a GPU.
        fields: of the progress events, such as `stage` and `what`.

    Returns:
        The CPU seconds for all shards; the time of shards that existed before is extrapolated from the others.

    Raises:
        ResourceError: the machines lack the CPUs or GPUs for one actor, or the disk is full.
        GenflowError: a writer raised it.
    """
    import ray

    from jobs.runtime.gpus import requested

    for torn in folder.rglob("*.tmp-*"):  # left by a killed attempt
        torn.unlink(missing_ok=True)
    left = [shard for shard in shards if not (folder / shard[0]).exists()]
    count = sum(last - first for _, first, last in shards)
    before = done = count - sum(last - first for _, first, last in left)
    if not left:
        return 0.0
    gpus = requested(cluster, cpus=1) if with_gpu else 0
    actor: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=3, max_task_retries=3)(_ShardActor)
    place = (Store().url, folder.parent.name, folder.name, cluster.device if with_gpu else "cpu")
    actors = [actor.remote(make, *place) for _ in range(min(len(left), _actors(cluster, gpus)))]
    starting = {actor.ready.remote(): actor for actor in actors}
    ray.wait(list(starting))  # for a CPU that another job uses, perhaps, which is not the time of a shard
    started, cpu = time.monotonic(), 0.0
    for rows, took in _written(starting, left):
        if isinstance(took, GenflowError):
            raise took
        done, cpu = done + rows, cpu + took
        rate = (done - before) / (time.monotonic() - started)
        emit("progress", step=done, steps=count, position=done / count, images_per_second=rate,
             eta=(count - done) / rate, **fields)  # fmt: skip
    return round(cpu * count / (count - before), 2)


def _written(
    starting: dict[Any, Any], shards: list[tuple[str, int, int]]
) -> "Iterator[tuple[int, float | GenflowError]]":
    """The results of the shards as they end. A shard is given to an actor that has started.

    Other jobs may use the CPUs or GPUs for which an actor waits; a shard that was given to it would wait, too.

    Args:
        starting: the actors by the reference to their start.
        shards: to be written.
    """
    import ray

    waiting, pending = shards[::-1], dict(starting)
    writing: set[Any] = set()
    while waiting or writing:
        (done, *_), _ = ray.wait(list(pending))
        actor = pending.pop(done)
        result = ray.get(done)
        if done in writing:
            writing.remove(done)
            yield result
        if waiting:
            shard = actor.write.remote(*waiting.pop())
            pending[shard] = actor
            writing.add(shard)


def _actors(cluster: Cluster, gpus: float) -> int:
    """The number of actors that were asked for, or that fit on the nodes.

    Raises:
        ResourceError: the cluster, grown as far as its autoscaler may, cannot run them at the same time.
    """
    from jobs.runtime import resources
    from jobs.runtime.gpus import alive_nodes

    if (nodes := resources.node_resources()) is not None:
        capacity.require(nodes, cluster.workers, 1, gpus)
    if cluster.workers > 1:
        return cluster.workers
    return max(1, capacity.fitting(alive_nodes(), 1, gpus))


class _ShardActor:
    """A Ray actor with a writer."""

    def __init__(
        self, make: Callable[[Path, str], ShardWriter], store: str, kind: str, id: str, device: str = "auto"
    ) -> None:
        import torch

        from jobs.runtime.gpus import claim

        self._device = claim(device)
        torch.set_num_threads(1)  # the number of threads may change how sums are rounded
        self._store = Store(store)
        self._folder = self._store.folder(kind, id)
        self._make = make
        self._writer: ShardWriter | None = None

    def ready(self) -> None:
        """Returns once the actor has started."""

    def write(self, file: str, first: int, last: int) -> "tuple[int, float | GenflowError]":
        """Write a shard unless it exists; return its rows, and CPU seconds or the error."""
        started, path = time.process_time(), self._folder / file
        try:
            with explain_disk_errors(path):
                if self._writer is None:
                    self._writer = self._make(self._folder, self._device)
                if not path.exists():
                    self._writer.write(path, first, last)
            if mirror := self._store.mirror:
                mirror.bucket.upload(path, mirror.key(path))
        except GenflowError as error:  # as a value, because Ray would add its traceback to the message
            return 0, error
        return last - first, time.process_time() - started
