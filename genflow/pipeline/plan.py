"""What running a pipeline would do, as far as it can be known before anything runs."""

from typing import Any

from genflow.errors import GenflowError
from genflow.pipeline.graph import Pipeline, Stage
from genflow.storage.store import Store

NAMED = 5  # stages that are waited for, by name


def foresee(pipeline: Pipeline, store: Store) -> list[dict[str, Any]]:
    """One row a stage: its artifact if it can be named yet, and whether it is cached, to do, or waits for another.

    Where failures are measurements, a training that diverged before is not done again: its state is "diverged".
    """
    made: dict[str, dict[str, Any]] = {}
    measured = {need for stage in pipeline.stages if stage.takes_failures for need in stage.needs}
    rows = []
    for stage in pipeline.stages:
        lacking = [need for need in stage.needs if need not in made]
        artifact, state = "", "after " + (", ".join(lacking) if len(lacking) <= NAMED else f"{len(lacking)} stages")
        if set(stage.needs) <= made.keys():
            try:
                artifact, result = _foresee(stage, made, store)
                state = "cached" if result else "to do"
                if result:
                    made[stage.name] = result
                elif stage.name in measured and _diverged(stage, made, store):
                    state = "diverged"
            except GenflowError as error:
                state = f"cannot run: {error.message}"
        rows.append(
            {"stage": stage.name, "job": stage.job, "needs": list(stage.needs), "artifact": artifact, "state": state}
        )
    return rows


def _diverged(stage: Stage, made: dict[str, Any], store: Store) -> bool:
    if stage.job != "train":
        return False
    from genflow import runs
    from genflow.recipe.schema import parse

    return runs.divergence(store, runs.plan(store, parse(stage.document(made)["recipe"]))) is not None


def _foresee(stage: Stage, made: dict[str, Any], store: Store) -> tuple[str, dict[str, Any] | None]:
    document = stage.document(made)
    if stage.job == "prepare":
        from genflow.data import prepare
        from genflow.data.sources import find

        _, id = prepare.identity(find.find(stage.recipe.data), stage.recipe.data)
        return id, {"dataset": id} if store.get("datasets", id) else None
    if stage.job == "train":
        from genflow import runs
        from genflow.recipe.schema import parse

        run = runs.plan(store, parse(document["recipe"]))
        return run.id, {"run": run.id} if store.get("runs", run.id) else None
    if stage.job == "reflow":
        from genflow.recipe.schema import parse
        from genflow.sampling import reflow

        task = reflow.plan(store, document["inputs"]["run"], parse(document["recipe"]))
        return task.id, {"pairs": task.id} if store.get("pairs", task.id) else None
    if stage.job == "evaluate" and len(stage.runs) == 1:
        from genflow.evaluation import evaluate
        from genflow.recipe.schema import parse

        recipe, made_by = parse(document["recipe"]), store.find("runs", document["inputs"]["runs"][0])
        data = store.find("datasets", made_by.meta["dataset"])
        id = evaluate.evaluation_id(made_by, data, recipe.evaluate, recipe.sample)
        return id, {"rows": [{"evaluation": id}]} if store.get("evaluations", id) else None
    return "", None
