"""Prepare a dataset: decode a source into Arrow shards, on as many workers as Ray has.

    python -m jobs.prepare recipe.yaml

One row of a Ray dataset is one shard to write. A worker decodes the shard's records, writes the file into the
folder under construction, and returns counts and hashes; this process commits the folder.
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
from genflow.pipeline.results import Prepared
from genflow.pipeline.stages import Stage
from genflow.recipe.schema import parse
from genflow.storage.store import Artifact, Store
from genflow.system.documents import Json
from jobs.runtime.cluster import ray_cluster
from jobs.runtime.entrypoint import Emit, execute, verbose

STAGE = Stage(
    makes="dataset",
    folder="datasets",
    sections=("data",),
    cores=0,
    goes_first=True,  # behind trainings that hold every core, Ray Data's tasks find none and give up after 30 minutes
    address="genflow.pipeline.addresses:prepare",
    order=1,
)


def main(document: Json, emit: Emit) -> Prepared:
    """Prepare `recipe.data`, unless it is there already; then Ray is not started.

    Returns:
        A `genflow.prepare/1` document.

    Raises:
        UsageError: no such source.
        DataError: more than `max_bad` records cannot be read, or the source is broken.
    """
    started = time.monotonic()
    artifact, cached = prepare.prepare(Store(), parse(document["recipe"]).data, ray_workers, emit)
    made = result(artifact, cached)
    made["seconds"] = round(time.monotonic() - started, 3)
    return made


def find(document: Json) -> Prepared | None:
    """The result, if the dataset is there already; None if there is something to do."""
    artifact = prepare.find(Store(), parse(document["recipe"]).data)
    return result(artifact, cached=True) if artifact else None


def result(artifact: Artifact, cached: bool) -> Prepared:
    """The document that the command prints."""
    facts = artifact.meta["facts"]
    return {
        "schema": "genflow.prepare/1",
        "dataset": artifact.id,
        "name": artifact.name,
        "path": str(artifact.path),
        "cached": cached,
        "images": sum(facts["splits"].values()),
        "bad": artifact.meta["bad"],
        "skipped": artifact.meta["skipped"],
        "facts": facts,
    }


@contextmanager
def ray_workers() -> Iterator[Executor]:
    """Ray's workers, for `prepare`."""
    with ray_cluster(logs=False):  # what libtiff thinks of a damaged file is nobody's concern
        yield distribute


def distribute(method: str, tasks: list[Any]) -> Iterator[tuple[int, Any]]:
    """Call a method of every task with Ray Data, one block a task; results come as they are done.

    Raises:
        GenflowError: what a task ended with.
    """
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.INFO if verbose() else logging.ERROR)
    rows = [{"number": n, "method": method, "task": pickle.dumps(task)} for n, task in enumerate(tasks)]
    for row in ray.data.from_items(rows, override_num_blocks=len(rows)).map(carry_out, **_place()).iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, GenflowError):
            raise result
        yield row["number"], result


def _place() -> dict[str, Any]:
    """Where tasks run: anywhere; for a store in a bucket on this node, because what they write is sent from here."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if Store().mirror is None:
        return {}
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)}


def carry_out(row: dict[str, Any]) -> dict[str, Any]:
    """On a worker: one task. An error that a person can mend is a result, so that it comes back as it is."""
    try:
        result = getattr(pickle.loads(row["task"]), row["method"])()
    except GenflowError as error:
        result = error
    return {"number": row["number"], "result": pickle.dumps(result)}


if __name__ == "__main__":
    execute(main)
