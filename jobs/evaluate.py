"""Measure runs: quality, variety, likelihood and speed, each with its uncertainty.

    python -m jobs.evaluate recipe.yaml
"""

from genflow import tracking
from genflow.evaluation import measure
from genflow.evaluation.table import best
from genflow.recipe import Recipe, parse
from genflow.store import Artifact, Store
from jobs.common import Document, Emit, execute, warn_of_gap


def main(document: Document, emit: Emit) -> Document:
    """Measure every run of `inputs.runs`, or the one of `inputs.run`, or find it measured.

    Returns:
        A `genflow.evaluate/1` document with one row a run.

    Raises:
        UsageError: there is no such run, or the features cannot be used.
        DataError: there is too little data to measure against, or a file is corrupt.
    """
    store = Store()
    return result(measured(store, document, emit))


def measured(store: Store, document: Document, emit: Emit) -> list[Document]:
    """Every run's evaluation, made where it is missing and told to MLflow."""
    recipe = parse(document["recipe"])
    rows = [
        measure.evaluate(store, run, data, recipe.evaluate, emit, recipe.sample)
        for run, data in pairs(store, document)
    ]
    for row in rows:
        if not row["cached"]:
            warn_of_gap(emit, row["run"], tracking.replay(store, row["run"], deadline_s=20))
    return rows


def find(document: Document) -> Document | None:
    """The result, if every run is measured already; None if there is something to do."""
    store = Store()
    rows = found(store, pairs(store, document), parse(document["recipe"]))
    return result(rows) if rows else None


def found(store: Store, runs: list[tuple[Artifact, Artifact]], recipe: Recipe) -> list[Document] | None:
    """The runs' evaluations, if there is one of each."""
    rows = [measure.find(store, run, data, recipe.evaluate, recipe.sample) for run, data in runs]
    return [row for row in rows if row] if all(rows) else None


def pairs(store: Store, document: Document) -> list[tuple[Artifact, Artifact]]:
    """Each run and the dataset it was trained on."""
    inputs = document["inputs"]
    runs = [store.find("runs", reference) for reference in inputs.get("runs") or [inputs["run"]]]
    return [(run, store.find("datasets", run.meta["dataset"])) for run in runs]


def result(rows: list[Document]) -> Document:
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
