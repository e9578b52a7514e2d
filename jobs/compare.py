"""Compare runs on one dataset: measure runs without an evaluation, then write the report.

    python -m jobs.compare recipe.yaml
"""

from genflow.errors import UsageError
from genflow.evaluation.extent import fit, said
from genflow.evaluation.report import first_screen, page
from genflow.evaluation.report.table import best
from genflow.evaluation.results import Evaluation
from genflow.pipeline.results import Compared
from genflow.pipeline.stages import Need, Stage
from genflow.recipe.schema import parse
from genflow.storage.store import Artifact, Store
from genflow.system.documents import Json
from jobs.evaluate import finished_rows, measure_runs, runs_with_data
from jobs.runtime import report_run
from jobs.runtime.entrypoint import Emit, execute

STAGE = Stage(
    makes="report",
    folder="reports",
    sections=("evaluate", "sample", "cluster"),
    device=True,
    needs=(Need("runs", "run", into="inputs.runs", count="several"),),
    outside=("evaluate.features", "evaluate.clip"),
    reviews="evaluations",  # the number of samples may be that of an earlier evaluation
    order=5,
)


def main(document: Json, emit: Emit) -> Compared:
    """Compare the runs of `inputs.runs`; an existing report is reused.

    With `inputs.fit` it measures no longer than the trainings took.

    Returns:
        A `genflow.compare/1` document: the report, the verdict in sentences, and one row per run.

    Raises:
        UsageError: there is no such run, or the runs have different datasets.
        DataError: there is too little data to measure against, or a file is corrupt.
    """
    store = Store()
    fingerprints = {run.meta["fingerprint"]: run for run, _ in runs_with_data(store, document)}
    if len(fingerprints) > 1:
        mixed = ", ".join(f"{run.id} on {run.meta['dataset']}" for run in fingerprints.values())
        raise UsageError(f"runs of different datasets cannot be compared: {mixed}")
    rows = measure_runs(store, _fitted(store, document, emit), emit)
    if existing := store.get("reports", page.address(rows)):
        return result(store, existing, rows, cached=True)
    report = page.build(store, rows)
    dataset = (rows[0]["dataset_name"], rows[0]["dataset"])
    sentences = first_screen.statements(store, page.with_unique_names(rows))
    title = f"comparison of {len(rows)} runs"
    report_run.send(store, report, "comparison", title, dataset, ("report.html",), sentences, emit)
    return result(store, report, rows, cached=False)


def _fitted(store: Store, document: Json, emit: Emit) -> Json:
    """The document with the number of samples that `evaluation.extent` chooses, if the user has given none."""
    if not document["inputs"].get("fit"):
        return document
    recipe, runs = parse(document["recipe"]), runs_with_data(store, document)
    extent = fit(store, runs, recipe)
    emit("note", message=said(extent, len(runs), recipe.evaluate))
    chosen = recipe.replace(evaluate=extent.options.model_dump(mode="json"))
    return {**document, "recipe": chosen.model_dump(mode="json")}


def find(document: Json) -> Compared | None:
    """The result if the report exists; None otherwise."""
    store = Store()
    rows = finished_rows(store, runs_with_data(store, document), parse(document["recipe"]))
    existing = store.get("reports", page.address(rows)) if rows else None
    return result(store, existing, rows, cached=True) if existing and rows else None


def result(store: Store, artifact: Artifact, rows: list[Evaluation], *, cached: bool) -> Compared:
    """The document that the command prints.

    Raises:
        DataError: the report is cached and differs from its manifest.
    """
    if cached:
        artifact.verify()
    named = page.with_unique_names(rows)
    return {
        "schema": "genflow.compare/1",
        "report": artifact.id,
        "path": str(artifact.path),
        "runs": [row["run"] for row in rows],
        "cached": cached,
        "best": best(rows),
        "cautions": first_screen.limits(store, named),
        "verdict": first_screen.statements(store, named),
        "rows": rows,
    }


if __name__ == "__main__":
    execute(main)
