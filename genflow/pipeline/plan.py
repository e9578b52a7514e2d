"""What running a pipeline would do, as far as it can be known before anything runs."""

from genflow.errors import GenflowError
from genflow.pipeline.graph import Node, Pipeline
from genflow.pipeline.stages import function, nested
from genflow.storage.store import Store
from genflow.system.documents import Json

MAX_NAMED = 5  # stages that are waited for, by name


def dry_run(pipeline: Pipeline, store: Store) -> list[Json]:
    """One row a stage: its artifact if it can be named yet, and whether it is cached, to do, or waits for another.

    Where failures are measurements, a training that diverged before is not done again: its state is "diverged".
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
    """The artifact's id, and the part of the result that names it if it is there."""
    if not node.stage.address:
        return "", None
    id = function(node.stage.address)(store, node.document(made))
    return id, nested(node.stage.makes, id) if id and store.get(node.stage.folder, id) else None


def _ended(node: Node, made: dict[str, Json], store: Store) -> bool:
    """Whether an earlier attempt ended in a way that is a measurement."""
    return bool(node.stage.ended) and function(node.stage.ended)(store, node.document(made)) is not None
