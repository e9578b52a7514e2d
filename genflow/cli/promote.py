"""`genflow promote`."""

from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.dispatch import use_of
from genflow.cli.options import AsJson, RunRef
from genflow.commands.references import find_run


def promote(
    run: RunRef,
    alias: Annotated[str, typer.Option(help="Alias of the model in MLflow.")] = "champion",
    name: Annotated[str, typer.Option(help="Name of the model in MLflow; default: the run's name.")] = "",
    json: AsJson = False,
) -> None:
    """Register a run as a model in MLflow under an alias.

    `genflow serve models:/NAME@ALIAS` then serves it.
    """
    from genflow.storage.store import Store
    from genflow.tracking import model_registry

    store = Store()
    found = find_run(store, run)
    promoted = model_registry.promote(store, found, name, alias)
    if json:
        console.document({"schema": "genflow.promote/1", "run": found.id, "model": promoted})
        return
    print(f"promoted {found.id}  {promoted}")
    serve = f"serve {promoted}{f' --name {name}' if name else ''}"
    console.next_commands(use_of(promoted, found.meta.get("family"), found.meta.get("dataset"), serve))
