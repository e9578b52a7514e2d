"""Prepare a dataset: decode a source into Arrow shards, on all workers of Ray.

    python -m jobs.prepare recipe.yaml

One row of a Ray dataset is one shard to write. A worker decodes the shard's records, writes the file into the staging
folder, and returns counts and hashes; this process commits the folder.
"""

import logging
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from genflow.data import prepare
from genflow.data.prepare import Executor
from genflow.errors import GenflowError
from genflow.pipeline.addresses import dataset_result, prepared
from genflow.pipeline.results import Prepared
from genflow.pipeline.stages import Stage
from genflow.recipe.schema import parse
from genflow.storage.store import Store
from genflow.system.documents import Json
from jobs.runtime.cluster import ray_cluster
from jobs.runtime.entrypoint import Emit, execute, verbose

STAGE = Stage(
    makes="dataset",
    folder="datasets",
    sections=("data",),
    cores=0,
    goes_first=True,  # if trainings hold every core, Ray Data's tasks find none and give up after 30 minutes
    address="genflow.pipeline.addresses:prepare",
    found="genflow.pipeline.addresses:prepared",
    order=1,
)


def main(document: Json, emit: Emit) -> Prepared:
    """Prepare `recipe.data`; if the dataset exists, Ray is not started.

    Returns:
        A `genflow.prepare/1` document.

    Raises:
        UsageError: the source does not exist.
        DataError: more than `max_bad` records cannot be read, or the source is damaged.
    """
    store, started = Store(), time.monotonic()
    artifact, cached = prepare.prepare(store, parse(document["recipe"]).data, ray_workers, emit)
    if problem := store.record_name(artifact):
        emit("warning", message=problem, hint=f"use {artifact.id} instead of the name {artifact.name}")
    made = dataset_result(artifact, cached=cached)
    made["seconds"] = round(time.monotonic() - started, 3)
    return made


def find(document: Json) -> Prepared | None:
    """The result if the dataset exists, else None; its name means this dataset from now on."""
    store = Store()
    result = prepared(store, document)
    if result and (artifact := store.get("datasets", result["dataset"])):
        store.record_name(artifact)
    return result


@contextmanager
def ray_workers() -> Iterator[Executor]:
    """An executor on Ray, for `prepare`."""
    with ray_cluster(logs=False):  # hides the messages of libtiff about damaged files
        yield distribute


def distribute(method: str, tasks: list[Any]) -> Iterator[tuple[int, Any]]:
    """Call a method of every task with Ray Data, one block per task; yields results in order of completion.

    Raises:
        GenflowError: a task failed.
    """
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.INFO if verbose() else logging.ERROR)
    rows = [{"number": n, "method": method, "task": pickle.dumps(task)} for n, task in enumerate(tasks)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    for row in dataset.map(run_task, **_scheduling_options()).iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, GenflowError):
            raise result
        yield row["number"], result


def _scheduling_options() -> dict[str, Any]:
    """Tasks run on any node; for a store in a bucket only on this node, because it uploads the files."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if Store().mirror is None:
        return {}
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)}


def run_task(row: dict[str, Any]) -> dict[str, Any]:
    """Run one task on a worker. A `GenflowError` is returned as the result, so that Ray does not wrap it."""
    try:
        result = getattr(pickle.loads(row["task"]), row["method"])()
    except GenflowError as error:
        result = error
    return {"number": row["number"], "result": pickle.dumps(result)}


if __name__ == "__main__":
    execute(main)
