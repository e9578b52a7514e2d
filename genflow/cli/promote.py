"""`genflow promote`."""

from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.dispatch import find_run
from genflow.cli.options import AsJson, RunRef


def promote(
    run: RunRef,
    alias: Annotated[str, typer.Option(help="Which alias its model gets in MLflow.")] = "champion",
    name: Annotated[str, typer.Option(help="Of the model; by default the run's.")] = "",
    json: AsJson = False,
) -> None:
    """Give a run's model an alias in MLflow, by which it can be served: models:/NAME@ALIAS."""
    from genflow.storage.store import Store
    from genflow.tracking import model_registry

    store = Store()
    found = find_run(store, run)
    promoted = model_registry.promote(store, found, name, alias)
    if json:
        console.document({"schema": "genflow.promote/1", "run": found.id, "model": promoted})
        return
    print(f"promoted {found.id}  {promoted}")
    console.next_commands(f"genflow serve {promoted}{f' --name {name}' if name else ''}")
