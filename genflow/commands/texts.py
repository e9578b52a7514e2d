"""The text embeddings that a recipe names with `data.text`: those of an id, or those that are to be made first."""

import os
from pathlib import Path

from genflow.commands.references import find_named
from genflow.errors import UsageError
from genflow.recipe.schema import Recipe, parse
from genflow.storage.store import Store
from genflow.system.documents import Json
from genflow.system.streams import note


def find(store: Store, recipe: Recipe) -> tuple[Recipe, Json | None]:
    """The recipe with `data.text` as an id, and what the job `encode_text` gets if the embeddings do not exist yet.

    Args:
        store: holds the embeddings.
        recipe: names its dataset; `data.text` is an encoder, a name, an id, or none.

    Raises:
        UsageError: there is neither such a text encoder nor such an artifact, or the data has no captions.
    """
    from genflow.text_encoders.registry import KNOWN, NAMES

    reference, data = recipe.data.text, recipe.data.model_dump(mode="json")
    if reference in ("", "none"):
        return recipe, None
    parts = reference.split("+")
    if not (any(part in NAMES for part in parts) or os.sep in reference or Path(reference).is_dir()):
        try:
            found = find_named(store, "texts", reference, store.find("datasets", recipe.data.name).id)
        except UsageError as error:
            raise UsageError(f"--text {reference}: neither a text encoder nor text embeddings", KNOWN) from error
        return recipe.replace(data={**data, "text": found.id}), None
    from genflow.sampling import encode_text

    asked = parse({"data": {"name": recipe.data.name}, "encode": {"text": reference}})
    task = encode_text.plan(store, asked)
    made = store.get("texts", task.id)
    document = None if made else {"recipe": asked.model_dump(mode="json"), "inputs": {}}
    return recipe.replace(data={**data, "text": task.id}), document


def note_made(done: Json) -> None:
    """Print one line on standard error about embeddings that were made."""
    note(f"captions {done['captions']:,} embedded by {done['encoder']} in {done['seconds']:.0f}s")
