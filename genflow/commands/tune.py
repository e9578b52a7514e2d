"""What `genflow tune` asks of its job."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genflow.commands.recipes import recipe_on_data
from genflow.commands.train import with_epochs
from genflow.system.documents import Json

if TYPE_CHECKING:
    from genflow.recipe.schema import Recipe
    from genflow.storage.store import Store


def recipe(
    store: "Store", family: str, layers: list[Json], sets: list[str], param: list[str],
    epochs: float | None = None, **flags: Any,
) -> "Recipe":  # fmt: skip
    """The recipe of a search, with the ids of the dataset and the artifacts that it names.

    Args:
        store: holds the dataset.
        family: whose hyperparameters are searched.
        layers: documents below `sets`.
        sets: KEY=VALUE texts.
        param: KEY=SPACE texts; none: the family's own search space.
        epochs: passes over the training rows of each trial, in place of `tune.steps`.
        flags: values by recipe key; None and "" mean that the flag was not given.

    Raises:
        UsageError: a key or a value is invalid, or the dataset does not exist.
    """
    from genflow.tuning import space

    whole = {**flags, "tune.space": space.parse_pairs(param) if param else None}
    found = recipe_on_data(store, family, layers, sets, whole)
    return found if epochs is None else with_epochs(store, found, epochs, "tune")


def latents_stages(store: "Store", recipe: "Recipe") -> tuple[Json, str]:
    """The pipeline that makes the latents of a search with `data.latents=auto`, and their id if they exist.

    Raises:
        UsageError: the recipe cannot learn such latents.
    """
    from genflow.pipeline import latents

    latents.check(recipe, store)
    cluster_settings = recipe.cluster.model_dump(mode="json")
    stages = latents.stages(recipe.data.name, flip=recipe.data.flip, cluster=cluster_settings, size=recipe.size)
    document = {"name": "latents", "stages": stages}
    return document, latents.made(document, store)


def document(store: "Store", recipe: "Recipe", objective: str = "") -> tuple[Json, Any]:
    """What the job gets, and the plan of the search (`genflow.tuning.search.plan`).

    Args:
        store: holds the dataset.
        recipe: from `recipe`.
        objective: FILE.py:FUNCTION to call in place of training; empty: train.
    """
    from genflow.tuning import search

    if objective.partition(":")[0].endswith(".py"):
        objective = str(Path(objective).expanduser().absolute())
    plan = search.plan(store, recipe, objective)
    return {"recipe": recipe.model_dump(mode="json"), "inputs": {"objective": objective, "run": plan.id}}, plan
