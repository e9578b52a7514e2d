"""Compose the recipe of a command from its files, keys and flags."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genflow.errors import UsageError
from genflow.system.documents import Json

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.recipe.schema import Recipe
    from genflow.storage.store import Store


def read_config(path: Path) -> Json:
    """The content of a --config file.

    Raises:
        UsageError: it is missing or not a recipe.
        DataError: it is part of an artifact, such as the best.yaml of a search, and differs from its manifest.
    """
    from genflow.recipe.files import read
    from genflow.storage.manifest import verify_if_listed

    verify_if_listed(path)
    return read(path)


def compose_recipe(
    family: str | None, files: Sequence[Json], sets: list[str], flags: dict[str, Any]
) -> "Recipe":  # fmt: skip
    """Compose the recipe of a command from layers; later ones override: the family's preset, files, --set, flags.

    Args:
        family: None for a job without training.
        files: contents of the --config files.
        sets: KEY=VALUE strings from --set.
        flags: values by recipe key; None and "" mean that the flag was not given.

    Raises:
        UsageError: a key or a value is invalid.
    """
    from genflow.recipe.compose import assignments, compose

    return compose(family, *files, assignments(sets), nest_flags(flags))


def recipe_on_data(
    store: "Store", family: str, files: Sequence[Json], sets: list[str], flags: dict[str, Any]
) -> "Recipe":  # fmt: skip
    """`compose_recipe` with the ids of what the recipe names, and with `data.latents` decided.

    Raises:
        UsageError: a key or a value is invalid, the recipe is of another family, or an artifact does not exist.
    """
    from genflow.commands.references import find_data, latents_for

    composed = compose_recipe(family, files, sets, flags)
    if (kind := composed.family.get("kind")) != family:
        message = f"family.kind in the recipe is {kind!r}, but the command names {family}"
        raise UsageError(message, f"name {kind} in the command, or omit family.kind")
    recipe = find_data(store, composed)
    latents = latents_for(store, recipe)
    if latents in ("", "none", recipe.data.latents):
        return recipe
    composed = compose_recipe(family, [{"data": {"latents": latents}}, *files], sets, flags)
    data = {**recipe.data.model_dump(mode="json"), "latents": latents}
    return recipe.replace(data=data, **composed.model_dump(mode="json", include={"family", "train", "tune"}))


def nest_flags(flags: dict[str, Any]) -> Json:
    """Nest the given flags by section, as `nest` does, without those that were not given."""
    return nest({key: value for key, value in flags.items() if value not in (None, "")})


def nest(settings: Mapping[str, Any]) -> Json:
    """Nest settings by section: `{"train.steps": 10}` becomes `{"train": {"steps": 10}}`."""
    from genflow.recipe.compose import merge

    document: Json = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        document = merge(document, {section: {name: value} if name else value})
    return document
