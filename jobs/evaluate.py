"""Measure runs: quality, variety, likelihood and speed, each with its uncertainty.

    python -m jobs.evaluate recipe.yaml

With `cluster.workers` above 1, samples are drawn in shares, and each share is a Ray task that returns features. A share
does not depend on the worker that draws it, so only times depend on the number of workers. This process draws the first
share, and times are measured on it. So it uses the same kind of device as the tasks: if they use GPUs and this process
has none, as on the head of a cluster, the whole evaluation is a Ray task.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from genflow.errors import GenflowError
from genflow.evaluation import evaluate
from genflow.evaluation.report.table import best
from genflow.evaluation.results import Evaluation
from genflow.evaluation.samples import DrawnFeatures, Executor, Share
from genflow.pipeline.results import Evaluated
from genflow.pipeline.stages import Need, Stage
from genflow.recipe.schema import Cluster, Recipe, parse
from genflow.storage.store import Artifact, Store
from genflow.system import devices, environment, events
from genflow.system.documents import Json
from genflow.tracking import sync
from jobs.runtime.cluster import ray_cluster
from jobs.runtime.entrypoint import Emit, execute, warn_if_incomplete

STAGE = Stage(
    makes="rows.0.evaluation",
    folder="evaluations",
    sections=("evaluate", "sample", "cluster"),
    device=True,
    needs=(Need("runs", "run", into="inputs.runs", count="several"),),
    address="genflow.pipeline.addresses:evaluate",
    outside=("evaluate.features", "evaluate.clip"),
    listed=False,  # the report shows the results
    order=4,
)


def main(document: Json, emit: Emit) -> Evaluated:
    """Measure every run of `inputs.runs`, or the one of `inputs.run`; existing evaluations are reused.

    Returns:
        A `genflow.evaluate/1` document with one row per run.

    Raises:
        UsageError: there is no such run, or the features cannot be used.
        DataError: there is too little data to measure against, or a file is corrupt.
    """
    store = Store()
    return result(measure_runs(store, document, emit))


def measure_runs(store: Store, document: Json, emit: Emit) -> list[Evaluation]:
    """The evaluation of every run; new ones are also sent to MLflow."""
    recipe, runs = parse(document["recipe"]), runs_with_data(store, document)
    # an evaluation that exists is read without its lock, so that a read-only store is enough
    if found := finished_rows(store, runs, recipe):
        return found
    gpus, here = _resources(recipe.cluster)
    if gpus and not here:
        return _in_a_task(document, gpus)
    device = recipe.cluster.device
    if recipe.cluster.workers > 1 and device == "auto":
        device = "cuda" if gpus else "cpu"
    rows = [
        evaluate.find(store, run, data, recipe.evaluate, recipe.sample)
        or evaluate.evaluate(
            store, run, data, recipe.evaluate, emit, recipe.sample, executor_for(store, run, data, recipe, gpus),
            device,
        )
        for run, data in runs
    ]
    for row in rows:
        if not row["cached"]:
            warn_if_incomplete(emit, row["run"], sync.replay(store, row["run"], deadline_s=20))
    return rows


def _resources(cluster: Cluster) -> tuple[float, bool]:
    """The GPUs of a worker, and whether this process may use one: always, unless it is on a cluster."""
    on_cluster = bool(os.environ.get("GENFLOW_CLUSTER"))
    if cluster.workers == 1 and not on_cluster:
        return 0, True  # this process alone draws, and chooses its device
    from jobs.runtime.gpus import requested  # imports Ray

    with ray_cluster() if on_cluster else contextlib.nullcontext():
        return requested(cluster, cpus=1), not on_cluster or os.environ.get(devices.BY_RAY, "").startswith("cuda")


def _in_a_task(document: Json, gpus: float) -> list[Evaluation]:
    """`measure_runs` in a Ray task with a GPU."""
    import ray

    with ray_cluster():
        task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_measure_task)
        rows = ray.get(task.remote(document, Store().url))
    if isinstance(rows, GenflowError):
        raise rows
    return list(rows)


def _measure_task(document: Json, url: str) -> list[Evaluation] | GenflowError:
    """The Ray task of a whole evaluation. It returns its error, because Ray would add a traceback to the message."""
    from jobs.runtime.gpus import claim

    claim(parse(document["recipe"]).cluster.device)
    os.environ["GENFLOW_STORE"] = url
    try:
        return measure_runs(Store(url), document, events.emit)
    except GenflowError as error:
        return error


def executor_for(store: Store, run: Artifact, data: Artifact, recipe: Recipe, gpus: float) -> Executor | None:
    """Draws shares in Ray tasks, as many at a time as the recipe has workers; None for a single worker."""
    count = recipe.cluster.workers
    if count == 1:
        return None

    def drawn(shares: Sequence[Share]) -> Iterator[DrawnFeatures]:
        import ray
        import torch

        arguments = (
            store.url, run.id, data.id, recipe.evaluate.features, recipe.sample, torch.get_num_threads(),
            recipe.cluster.device,
        )  # fmt: skip
        with ray_cluster(num_cpus=max(environment.cores(), count)):
            # with `max_calls=0` a process with a GPU draws several shares, too, and loads the model once
            task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3, max_calls=0)(_share)
            left = iter(shares)
            ahead = [task.remote(*arguments, share) for share in islice(left, count)]
            while ahead:
                part: DrawnFeatures = ray.get(ahead.pop(0))
                ahead += [task.remote(*arguments, share) for share in islice(left, 1)]
                yield part

    return drawn


def _share(
    url: str, run: str, data: str, features: str, sample: dict[str, Any], threads: int, device: str, share: Share
) -> DrawnFeatures:
    """The Ray task. It uses as many threads as the driver, because the number of threads changes rounding."""
    import torch

    from jobs.runtime.gpus import claim

    claim(device)
    torch.set_num_threads(threads)
    store = Store(url)
    return evaluate.draw_share(store, store.find("runs", run), store.find("datasets", data), features, sample, share)


def find(document: Json) -> Evaluated | None:
    """The result if every run has an evaluation; None otherwise."""
    store = Store()
    rows = finished_rows(store, runs_with_data(store, document), parse(document["recipe"]))
    return result(rows) if rows else None


def finished_rows(store: Store, runs: list[tuple[Artifact, Artifact]], recipe: Recipe) -> list[Evaluation] | None:
    """The existing evaluations of all runs; None if one is missing."""
    rows = [evaluate.find(store, run, data, recipe.evaluate, recipe.sample) for run, data in runs]
    return [row for row in rows if row] if all(rows) else None


def runs_with_data(store: Store, document: Json) -> list[tuple[Artifact, Artifact]]:
    """Each run and the dataset that it was trained on."""
    inputs = document["inputs"]
    runs = [store.find("runs", reference) for reference in inputs.get("runs") or [inputs["run"]]]
    return [(run, store.find("datasets", run.meta["dataset"])) for run in runs]


def result(rows: list[Evaluation]) -> Evaluated:
    """The document that the command prints."""
    return {
        "schema": "genflow.evaluate/1",
        "runs": [row["run"] for row in rows],
        "path": rows[0]["path"],
        "cached": all(row["cached"] for row in rows),
        "best": best(rows),
        "rows": rows,
    }


if __name__ == "__main__":
    execute(main)
