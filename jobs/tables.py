"""Write the two tables of a study, and the verdicts of its evaluations on claims of textbooks.

    python -m jobs.tables recipe.yaml
"""

import json
from typing import Any

from genflow.pipeline.stages import Need, Stage
from genflow.storage.store import Artifact, Store
from genflow.system import source_hash
from genflow.system.documents import Json
from genflow.system.source_hash import digest
from genflow.tables import document as tables
from genflow.tables import formatting, page
from jobs.runtime import report_run
from jobs.runtime.entrypoint import Emit, execute

TEMPLATES = ("genflow/tables/page.html.j2", "genflow/evaluation/report/templates")

STAGE = Stage(
    makes="report",
    folder="reports",
    values=("study",),
    needs=(Need("needs", "rows.0.evaluation", into="inputs.evaluations", count="by_stage"),),
    takes_failures=True,
    order=6,
)


def main(document: Json, emit: Emit) -> Json:
    """Write the tables; existing ones are reused.

    Args:
        document: {study, inputs: {evaluations: {stage: id}, failed: {stage: {stage, kind, message}}}}.
        emit: receives a warning if MLflow could not be reached.

    Returns:
        A `genflow.tables/1` document.

    Raises:
        GenflowError: nothing was measured.
    """
    if done := find(document):
        return done
    store, study, inputs = Store(), document["study"], document["inputs"]
    found = tables.gather(store, inputs["evaluations"])
    made = tables.build(store, study, found, inputs["failed"])
    id = address(made["dataset_name"], document)
    with store.stage("reports", id, name=f"tables-{made['dataset_name']}") as staged:
        made = {**made, "report": id}
        (staged.path / "tables.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
        (staged.path / "tables.md").write_text(formatting.as_markdown(made), encoding="utf-8")
        (staged.path / "report.html").write_text(page.render(store, made, found), encoding="utf-8")
        (staged.path / "poster.png").write_bytes(page.draw_poster(store, made, found))
        parents = list(dict.fromkeys(row["run"] for seeds in found.values() for row in seeds.values()))
        meta = {"verdict": made["verdict"], "dataset": made["dataset"], "inputs": key(document)}
        artifact = staged.commit(parents=parents, meta=meta)
    files, dataset = ("report.html", "tables.md", "tables.json"), (made["dataset_name"], made["dataset"])
    report_run.send(store, artifact, "tables", artifact.id, dataset, files, made["verdict"], emit)
    return result(artifact, cached=False)


def find(document: Json) -> Json | None:
    """The result if the tables exist; None otherwise."""
    for artifact in Store().artifacts("reports"):
        if artifact.meta.get("inputs") == key(document):
            return result(artifact, cached=True)
    return None


def key(document: Json) -> str:
    """A hash of everything that decides the tables: the study, its evaluations, failures and the code."""
    failed = {name: failure["message"] for name, failure in document["inputs"]["failed"].items()}
    study = {name: value for name, value in document["study"].items() if name != "command"}
    code = source_hash.code_of("jobs/tables.py", also=TEMPLATES)
    return digest([study, document["inputs"]["evaluations"], failed, code])


def address(dataset: str, document: Json) -> str:
    """The content address of the tables."""
    return f"tables-{dataset}-{key(document)}"


def result(artifact: Artifact, *, cached: bool) -> Json:
    """The document that the command prints.

    Raises:
        DataError: the tables are cached and differ from their manifest.
    """
    if cached:
        artifact.verify()
    document: dict[str, Any] = json.loads(artifact.file("tables.json").read_text(encoding="utf-8"))
    return {**document, "path": str(artifact.path), "cached": cached}


if __name__ == "__main__":
    execute(main)
