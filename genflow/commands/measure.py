"""What `genflow evaluate` and `genflow compare` ask of their jobs."""

from collections.abc import Sequence
from typing import Any

from genflow.commands.recipes import compose_recipe
from genflow.commands.references import absolute_if_path, find_run, resolve_features, show_dataset
from genflow.errors import UsageError
from genflow.recipe.schema import Evaluate
from genflow.storage.store import Store
from genflow.system.documents import Json


def document(
    store: Store, references: Sequence[str], layers: list[Json], sets: list[str], flags: dict[str, Any], job: str = ""
) -> Json:  # fmt: skip
    """The recipe and the runs of a measurement.

    Args:
        store: holds the runs.
        references: of the runs, as a user types them.
        layers: documents below `sets`.
        sets: KEY=VALUE texts.
        flags: values by recipe key; None and "" mean that the flag was not given.
        job: `compare` chooses the number of samples itself if none is given (`evaluation.extent`).

    Raises:
        UsageError: there is no such run, or the runs learned different datasets.
        SetupError: a package for the features is not installed.
    """
    runs = [find_run(store, reference) for reference in references]
    if len({run.meta.get("fingerprint") for run in runs}) > 1:
        pairs = ", ".join(f"{run.id} on {run.meta.get('dataset')}" for run in runs)
        raise UsageError(
            f"runs on different datasets cannot be compared: {pairs}", "genflow runs ls shows the dataset of each run"
        )
    if dataset := store.get("datasets", runs[0].meta.get("dataset", "")):
        show_dataset(dataset)
    recipe = compose_recipe(None, layers, sets, flags)
    fitted = {"fit": True} if job == "compare" and "samples" not in recipe.evaluate.model_fields_set else {}
    spec = resolve_features(recipe.evaluate.features, store)
    clip = absolute_if_path(recipe.evaluate.clip) if recipe.evaluate.clip else ""
    recipe = recipe.replace(evaluate={**recipe.evaluate.model_dump(mode="json"), "features": spec, "clip": clip})
    ids = list(dict.fromkeys(run.id for run in runs))
    return {"recipe": recipe.model_dump(mode="json"), "inputs": {"runs": ids, **fitted}}


def settings_of(store: Store, run: str) -> list[Json]:
    """The settings of the newest evaluation of a run, as layers of a recipe; none if it was not measured.

    Settings that this version does not have are omitted.
    """
    from genflow.evaluation.results import documents

    newest = [found for _, found in documents(store) if found["run"] == run][-1:]
    known = Evaluate.model_fields
    return [
        {"evaluate": {key: value for key, value in found["evaluate"].items() if key in known},
         "sample": found.get("sample") or {}}
        for found in newest
    ]  # fmt: skip
