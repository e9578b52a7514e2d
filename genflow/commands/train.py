"""What `genflow train` asks of its jobs."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genflow.commands.recipes import recipe_on_data
from genflow.commands.references import require_family
from genflow.errors import UsageError
from genflow.system.documents import Json
from genflow.system.streams import note

if TYPE_CHECKING:
    from genflow.recipe.schema import Recipe
    from genflow.storage.store import Store

NO_END = 1_000_000_000


def recipe(
    store: "Store", family: str, files: Sequence[Json], layers: Sequence[Json], sets: list[str], *,
    epochs: float | None = None, **flags: Any,
) -> "Recipe":  # fmt: skip
    """The recipe of a training, with the ids of the dataset and the artifacts that it names.

    Args:
        store: holds them.
        family: empty: that of the last file that names one.
        files: contents of recipe files.
        layers: documents above the files and below `sets`.
        sets: KEY=VALUE texts.
        epochs: passes over the training rows, in place of `train.steps`.
        flags: values by recipe key; None and "" mean that the flag was not given.

    Raises:
        UsageError: a key or a value is invalid, or the family or the dataset does not exist.
    """
    family = family_named(family, files)
    budgets = ("train.minutes", "train.cpu_minutes")
    from genflow.recipe.compose import assignments

    limited = any("steps" in layer.get("train", {}) for layer in (*layers, assignments(sets)))
    if any(flags.get(key) for key in budgets) and not flags.get("train.steps") and not limited:
        flags["train.steps"] = NO_END  # without --steps, only the time limits the run
    found = recipe_on_data(store, family, [*files, *layers], sets, flags)
    return found if epochs is None else with_epochs(store, found, epochs)


def with_epochs(store: "Store", recipe: "Recipe", epochs: float, section: str = "train") -> "Recipe":
    """The recipe with `train.steps`, or `tune.steps`, for some passes over the training rows of its dataset.

    Raises:
        UsageError: the number of passes is not above 0.
    """
    if not epochs > 0:
        raise UsageError(f"--epochs must be above 0, not {epochs:g}")
    rows = store.find("datasets", recipe.data.name).meta["facts"]["splits"]["train"]
    batch = recipe.train.batch
    steps = math.ceil(epochs * rows / batch)
    note(f"epochs   {epochs:g} of {rows:,} rows in batches of {batch}: {section}.steps={steps}")
    values = getattr(recipe, section).model_dump(mode="json")
    return recipe.replace(**{section: {**values, "steps": steps}})


def family_named(family: str, files: Sequence[Json]) -> str:
    """The family argument, or the family in the last recipe file that names one.

    Raises:
        UsageError: no family is named, or the family is unknown.
    """
    sections = [file["family"] for file in reversed(files) if isinstance(file.get("family"), dict)]
    family = family or next((str(section["kind"]) for section in sections if "kind" in section), "")
    if not family:
        from genflow.families import kinds

        known = ", ".join(kinds())
        raise UsageError("no family given", f"genflow train FAMILY --data NAME; choose one of: {known}")
    require_family(family)
    return family


def with_latents(store: "Store", recipe: "Recipe") -> "tuple[Recipe, Json | None]":
    """The recipe on latents that exist; or, if they are missing, the pipeline that makes them and trains.

    Raises:
        UsageError: the recipe cannot learn such latents.
    """
    from genflow.pipeline import latents

    if recipe.data.latents != "auto":
        return recipe, None
    for document in (latents.pipeline(recipe, whole=True), latents.pipeline(recipe)):
        if made := latents.made(document, store):
            return on_latents(recipe, made), None
    latents.check(recipe, store)
    return recipe, document


def on_latents(recipe: "Recipe", latents: str) -> "Recipe":
    """The recipe on latents that exist; the mirrored pictures are among them, because latents cannot be mirrored."""
    return recipe.replace(data={**recipe.data.model_dump(mode="json"), "latents": latents, "flip": False})


def document(store: "Store", recipe: "Recipe", *, fresh: bool = False, planned: bool = False) -> Json:
    """What the job gets.

    Args:
        store: holds the dataset.
        recipe: with the ids of what it names.
        fresh: whether an interrupted or finished run is deleted first.
        planned: whether to resolve the recipe here, for a cluster; a local job makes the same plan itself.
    """
    inputs: Json = {"fresh": fresh, "announce": True}
    if planned:
        from genflow.runs import plan  # imports torch

        run = plan(store, recipe)
        recipe, inputs["run"] = run.recipe, run.id
    return {"recipe": recipe.model_dump(mode="json"), "inputs": inputs}
