"""Measure runs: quality, variety, likelihood and speed, each with its uncertainty.

    python -m jobs.evaluate recipe.yaml

With `cluster.workers` above 1, samples are drawn in shares, and each share is a Ray task that returns features. A share
does not depend on the worker that draws it, so only times depend on the number of workers. This process draws the first
share, and times are measured on it.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from genflow.evaluation import evaluate
from genflow.evaluation.report.table import best
from genflow.evaluation.results import Evaluation
from genflow.evaluation.samples import DrawnFeatures, Executor, Share
from genflow.pipeline.results import Evaluated
from genflow.pipeline.stages import Need, Stage
from genflow.recipe.schema import Recipe, parse
from genflow.storage.store import Artifact, Store
from genflow.system import environment
from genflow.system.documents import Json
from genflow.tracking import sync
from jobs.runtime.cluster import ray_cluster
from jobs.runtime.entrypoint import Emit, execute, warn_if_incomplete

STAGE = Stage(
    makes="rows.0.evaluation",
    folder="evaluations",
    sections=("evaluate", "sample"),
    needs=(Need("runs", "run", into="inputs.runs", count="several"),),
    address="genflow.pipeline.addresses:evaluate",
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
    recipe = parse(document["recipe"])
    rows = [
        # an evaluation that exists is read without its lock, so that a read-only store is enough
        evaluate.find(store, run, data, recipe.evaluate, recipe.sample)
        or evaluate.evaluate(
            store, run, data, recipe.evaluate, emit, recipe.sample, executor_for(store, run, data, recipe)
        )
        for run, data in runs_with_data(store, document)
    ]
    for row in rows:
        if not row["cached"]:
            warn_if_incomplete(emit, row["run"], sync.replay(store, row["run"], deadline_s=20))
    return rows


def executor_for(store: Store, run: Artifact, data: Artifact, recipe: Recipe) -> Executor | None:
    """Draws shares in Ray tasks, as many at a time as the recipe has workers; None for a single worker."""
    count, gpus = recipe.cluster.workers, recipe.cluster.gpus
    if count == 1:
        return None

    def drawn(shares: Sequence[Share]) -> Iterator[DrawnFeatures]:
        import ray
        import torch

        arguments = (store.url, run.id, data.id, recipe.evaluate.features, recipe.sample, torch.get_num_threads())
        with ray_cluster(num_cpus=max(environment.cores(), count)):
            task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_share)
            left = iter(shares)
            ahead = [task.remote(*arguments, share) for share in islice(left, count)]
            while ahead:
                part: DrawnFeatures = ray.get(ahead.pop(0))
                ahead += [task.remote(*arguments, share) for share in islice(left, 1)]
                yield part

    return drawn


def _share(
    url: str, run: str, data: str, features: str, sample: dict[str, Any], threads: int, share: Share
) -> DrawnFeatures:
    """The Ray task. It uses as many threads as the driver, because the number of threads changes rounding."""
    import torch

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
