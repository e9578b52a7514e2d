"""Reflow: Ray actors with a teacher write pairs of noise and samples; training on the pairs is rectified flow.

    python -m jobs.reflow recipe.yaml
"""

from functools import partial
from pathlib import Path

from genflow.pipeline.results import PairsWritten
from genflow.pipeline.stages import Need, Stage
from genflow.recipe.schema import parse
from genflow.sampling.reflow import ReflowPlan, Teacher, plan
from genflow.storage.store import Artifact, Store
from genflow.system import environment
from genflow.system.documents import Json
from jobs.runtime.cluster import ray_cluster
from jobs.runtime.entrypoint import Emit, execute
from jobs.runtime.shard_actors import write_missing
from jobs.runtime.shard_stage import make

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
    store, recipe = Store(), parse(document["recipe"])
    task = plan(store, document["inputs"]["run"], recipe)

    def write(folder: Path) -> float:
        with ray_cluster(num_cpus=max(environment.cores(), recipe.cluster.workers)):
            return write_missing(
                partial(_teacher, task), folder, task.shards, recipe.cluster, emit,
                stage="reflow", run=task.run.id, what="pairs",
            )  # fmt: skip

    def finish(folder: Path) -> Json:
        made_from = {"run": task.run.id, "dataset": task.dataset.id, "latents": task.latents, "texts": task.texts}
        return {**made_from, "pairs": task.count, "seed": task.seed, "options": task.options}

    pairs, cached = make(store, "pairs", task, write=write, finish=finish)
    return result(pairs, cached=cached)


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


def _teacher(task: ReflowPlan, folder: Path, device: str) -> Teacher:
    return Teacher(task, device)


if __name__ == "__main__":
    execute(main)
