"""`genflow endpoints`: list and stop endpoints."""

import os
import signal
import time
from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.options import AsJson
from genflow.cli.words import Listing
from genflow.errors import SetupError, UsageError

app = typer.Typer(cls=Listing, help="List and stop endpoints that `genflow serve` started; alone, list them.")

DRAIN_S = 90.0  # time for an endpoint to answer its open requests


@app.command("ls")
def list_endpoints(json: AsJson = False) -> None:
    """List the endpoints, and whether each of them answers."""
    from genflow.serving import endpoints
    from genflow.storage.store import Store

    rows = []
    for endpoint in endpoints.list_running(Store()):
        inputs = endpoint["inputs"]
        address = endpoints.address(inputs)
        status = "well" if endpoints.is_healthy(address) else "does not answer"
        models = [model["name"] for model in inputs["models"]]
        rows.append({"name": endpoint["name"], "address": address, "models": models, "status": status})
    if json:
        console.document({"schema": "genflow.endpoints/1", "endpoints": rows})
        return
    if not rows:
        print("no endpoint is running")
        console.next_commands("genflow serve RUN")
        return
    shown = {"well": "healthy"}
    table = [
        (row["name"], row["address"], ", ".join(row["models"]), shown.get(row["status"], row["status"])) for row in rows
    ]
    print(console.table(("endpoint", "address", "models", "status"), table, left=4))


@app.command()
def down(name: Annotated[str, typer.Argument(help="The endpoint's name.")]) -> None:
    """Stop an endpoint after it has answered its open requests."""
    from genflow.serving import endpoints
    from genflow.storage.files import HOSTNAME
    from genflow.storage.store import Store

    store = Store()
    found = endpoints.get(store, name)
    if found is None:
        known = ", ".join(endpoint["name"] for endpoint in endpoints.list_running(store)) or "none"
        raise UsageError(f"no endpoint {name!r} is running; running endpoints: {known}", "genflow endpoints ls")
    if found["node"] != HOSTNAME:
        raise UsageError(
            f"endpoint {name} runs on another machine, {found['node']}", "genflow jobs ls, then genflow jobs stop JOB"
        )
    os.kill(found["pid"], signal.SIGTERM)
    end = time.monotonic() + DRAIN_S
    while time.monotonic() < end:
        if endpoints.get(store, name) is None and not endpoints.is_running(found):
            print(f"stopped  {name}")
            return
        time.sleep(0.2)
    raise SetupError(
        f"endpoint {name} is still answering requests after {DRAIN_S:g} s", f"wait, or kill process {found['pid']}"
    )
