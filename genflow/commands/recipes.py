"""Compose the recipe of a command from its files, keys and flags."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genflow.system.documents import Json

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.recipe.schema import Recipe


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
