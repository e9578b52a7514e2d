"""The dry run of a pipeline: the state of every stage, as far as it is known before any stage runs."""

from genflow.errors import GenflowError
from genflow.pipeline import answers
from genflow.pipeline.graph import Node, Pipeline
from genflow.pipeline.stages import function, look_up, nested
from genflow.storage.store import Store
from genflow.system.documents import Json

MAX_NAMED = 5  # missing dependencies that a row names; for more it gives their number


def dry_run(pipeline: Pipeline, store: Store) -> list[Json]:
    """One row per stage: its artifact's id if it is known, and its state: cached, to do, or after other stages.

    If another stage counts failures as measurements, a run that diverged is not trained again: its state is "diverged".
    """
    made: dict[str, Json] = {}
    measured = {need for node in pipeline.stages if node.takes_failures for need in node.needs}
    rows = []
    for node in pipeline.stages:
        lacking = [need for need in node.needs if need not in made]
        artifact, state = "", "after " + (", ".join(lacking) if len(lacking) <= MAX_NAMED else f"{len(lacking)} stages")
        if not lacking:
            try:
                artifact, result = _existing(node, made, store)
                state = "cached" if result else "to do"
                if result:
                    made[node.name] = result
                elif node.name in measured and _ended(node, made, store):
                    state = "diverged"
            except GenflowError as error:
                state = f"cannot run: {error.message}"
        rows.append(
            {"stage": node.name, "job": node.job, "needs": list(node.needs), "artifact": artifact, "state": state}
        )
    return rows


def _existing(node: Node, made: dict[str, Json], store: Store) -> tuple[str, Json | None]:
    """The artifact's id, and, if the artifact exists, the part of the result that contains the id."""
    document = node.document(made)
    if known := answers.of_stage(store, node.job, document):
        return str(look_up(known, node.stage.makes)), known
    if not node.stage.address:
        return "", None
    id = function(node.stage.address)(store, document)
    return id, nested(node.stage.makes, id) if id and store.get(node.stage.folder, id) else None


def _ended(node: Node, made: dict[str, Json], store: Store) -> bool:
    """Whether an earlier attempt ended in a failure that counts as a measurement."""
    return bool(node.stage.ended) and function(node.stage.ended)(store, node.document(made)) is not None
