"""Reflow: Ray actors with a teacher write pairs of noise and samples; training on the pairs is rectified flow.

    python -m jobs.reflow recipe.yaml
"""

import time
from pathlib import Path
from typing import Any

from genflow.pipeline.results import PairsWritten
from genflow.pipeline.stages import Need, Stage
from genflow.recipe.schema import parse
from genflow.sampling.reflow import ReflowPlan, Teacher, plan
from genflow.storage.files import explain_disk_errors
from genflow.storage.store import Artifact, Store
from genflow.system import environment
from genflow.system.documents import Json
from jobs.runtime.cluster import ray_cluster
from jobs.runtime.entrypoint import Emit, execute

STAGE = Stage(
    makes="pairs",
    folder="pairs",
    sections=("reflow", "sample", "cluster"),
    needs=(Need("run", "run", into="inputs.run"),),
    cores=0,
    address="genflow.pipeline.addresses:reflow",
    order=3,
)


def main(document: Json, emit: Emit) -> PairsWritten:
    """Write the pairs of the teacher `inputs.run`, unless they exist; shards of an interrupted attempt are kept.

    Returns:
        A `genflow.reflow/1` document.

    Raises:
        UsageError: the run does not exist, or its family cannot be a teacher.
        DataError: the run's checkpoint is corrupt.
    """
    store, started = Store(), time.monotonic()
    task = plan(store, document["inputs"]["run"], parse(document["recipe"]))
    if done := store.get("pairs", task.id):  # without the lock, so that a read-only store is enough
        return result(done, cached=True)
    with store.lock("pairs", task.id, wait=True, uses=[task.run.id, task.dataset.id]):
        if done := store.get("pairs", task.id):
            return result(done, cached=True)
        folder = store.folder("pairs", task.id)
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if store.mirror:
            store.mirror.download_missing(folder)  # fetches the shards that earlier attempts wrote on any machine
        recipe = parse(document["recipe"])
        with ray_cluster(num_cpus=max(environment.cores(), recipe.cluster.workers)):
            cpu_seconds = _write(task, folder, recipe.cluster.workers, recipe.cluster.gpus, emit)
        seconds = round(time.monotonic() - started, 1)
        meta = {"run": task.run.id, "dataset": task.dataset.id, "pairs": task.count, "seed": task.seed}
        artifact = store.finalize(
            "pairs", task.id, name=task.run.name, parents=[task.run.id, task.dataset.id],
            meta={**meta, "options": task.options, "seconds": seconds, "cpu_seconds": cpu_seconds},
            only=lambda name: ".tmp-" not in name,
        )  # fmt: skip
    return result(artifact, cached=False)


def find(document: Json) -> PairsWritten | None:
    """The result if the pairs exist, else None."""
    store = Store()
    done = store.get("pairs", plan(store, document["inputs"]["run"], parse(document["recipe"])).id)
    return result(done, cached=True) if done else None


def result(pairs: Artifact, *, cached: bool) -> PairsWritten:
    """The document that the command prints."""
    return {
        "schema": "genflow.reflow/1",
        "pairs": pairs.id,
        "count": pairs.meta["pairs"],
        "path": str(pairs.path),
        "cached": cached,
        "run": pairs.meta["run"],
        "dataset": pairs.meta["dataset"],
        "options": pairs.meta["options"],
        "seconds": pairs.meta["seconds"],
    }


def _write(task: ReflowPlan, folder: Path, workers: int, gpus: float, emit: Emit) -> float:
    """Write the missing shards with one actor per shard or CPU, whichever is fewer.

    Returns:
        The CPU seconds for all pairs; the time of shards that existed before is extrapolated from the others.
    """
    import ray
    from ray.util import ActorPool

    left = [shard for shard in task.shards if not (folder / shard[0]).exists()]
    done = task.count - sum(last - first for _, first, last in left)
    actors = min(len(left), max(workers, 1) if workers > 1 else int(ray.cluster_resources().get("CPU", 1)))
    holder: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=3, max_task_retries=3)(_PairWriter)
    pool = ActorPool([holder.remote(task, Store().url) for _ in range(actors)])
    started = time.monotonic()
    before, cpu = done, 0.0
    for count, took in pool.map_unordered(lambda actor, shard: actor.write.remote(*shard), left):
        done += count
        cpu += took
        rate = (done - before) / (time.monotonic() - started)
        emit("progress", stage="reflow", run=task.run.id, step=done, steps=task.count, position=done / task.count,
             images_per_second=rate, eta=(task.count - done) / rate, what="pairs")  # fmt: skip
    return round(cpu * task.count / (task.count - before), 2) if task.count > before else 0.0


class _PairWriter:
    """A Ray actor with a teacher."""

    def __init__(self, task: ReflowPlan, store: str) -> None:
        import torch

        torch.set_num_threads(1)
        self._store = Store(store)
        self._folder = self._store.folder("pairs", task.id)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._teacher = Teacher(task, "cuda" if has_gpu() else "cpu")

    def write(self, file: str, first: int, last: int) -> tuple[int, float]:
        started = time.process_time()
        count, took = self._teacher.write(self._folder, file, first, last), time.process_time() - started
        if self._store.mirror:
            self._store.mirror.bucket.upload(self._folder / file, f"pairs/{self._folder.name}/{file}")
        return count, took


def has_gpu() -> bool:
    """Whether Ray gave this actor a GPU."""
    import ray

    return bool(ray.get_gpu_ids())


if __name__ == "__main__":
    execute(main)
