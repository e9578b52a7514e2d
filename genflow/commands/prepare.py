"""What `genflow prepare` asks of its job."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genflow.commands.recipes import compose_recipe
from genflow.commands.references import absolute_if_path, find_named
from genflow.data import sources
from genflow.errors import UsageError
from genflow.system.documents import Json

if TYPE_CHECKING:
    from genflow.recipe.schema import Recipe
    from genflow.storage.store import Store


def recipe(store: "Store", source: str, channels: str, layers: list[Json], sets: list[str], **given: Any) -> "Recipe":
    """The recipe of a dataset.

    Args:
        store: holds the dataset that `stack:DATASET` names.
        source: a built-in source, a path, or `stack:` and one of them.
        channels: "auto", "1" or "3".
        layers: documents below `sets`.
        sets: KEY=VALUE texts.
        given: further keys of the section `data`; None and "" mean that the key was not given.

    Raises:
        UsageError: a key or a value is invalid.
    """
    if channels not in ("auto", "1", "3"):
        raise UsageError(f"--channels must be auto, 1 or 3, not {channels!r}", "leave out --channels to detect them")
    given |= {"source": find_source(store, source), "channels": channels if channels == "auto" else int(channels)}
    return compose_recipe(None, layers, sets, {f"data.{key}": value for key, value in given.items()})


def find_source(store: "Store", text: str) -> str:
    """Resolve a source to a name or an absolute path; `stack:DATASET` becomes `stack:` with that dataset's source."""
    if not (prefix := sources.prefix_of(text)):
        return absolute_if_path(text)
    base = text.removeprefix(prefix)
    if base in sources.names() or Path(base).expanduser().exists():
        return prefix + absolute_if_path(base)
    if any(base in (dataset.name, dataset.id) for dataset in store.artifacts("datasets")):
        return prefix + str(find_named(store, "datasets", base).meta["options"]["source"])
    return prefix + absolute_if_path(base)
