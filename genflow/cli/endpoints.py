"""`genflow endpoints`: what is being served."""

import os
import signal
import time
from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.options import AsJson
from genflow.errors import SetupError, UsageError

app = typer.Typer(help="What is being served.", no_args_is_help=True)

DRAIN_S = 90.0  # that an endpoint may take to answer what is under way


@app.command("ls")
def list_endpoints(json: AsJson = False) -> None:
    """List what is being served, and whether it answers."""
    from genflow.serving import endpoints
    from genflow.storage.store import Store

    rows = []
    for endpoint in endpoints.list_running(Store()):
        inputs = endpoint["inputs"]
        address = f"http://{inputs['host']}:{inputs['port']}"
        status = "well" if endpoints.is_healthy(address) else "does not answer"
        models = [model["name"] for model in inputs["models"]]
        rows.append({"name": endpoint["name"], "address": address, "models": models, "status": status})
    if json:
        console.document({"schema": "genflow.endpoints/1", "endpoints": rows})
        return
    if not rows:
        print("nothing is being served")
        console.next_commands("genflow serve RUN")
        return
    table = [(row["name"], row["address"], ", ".join(row["models"]), row["status"]) for row in rows]
    print(console.table(("endpoint", "address", "models", "status"), table, left=4))


@app.command()
def down(name: Annotated[str, typer.Argument(help="The endpoint's name.")]) -> None:
    """End an endpoint; what is under way is answered first."""
    from genflow.serving import endpoints
    from genflow.storage.files import NODE
    from genflow.storage.store import Store

    store = Store()
    found = endpoints.get(store, name)
    if found is None:
        known = ", ".join(endpoint["name"] for endpoint in endpoints.list_running(store)) or "none"
        raise UsageError(f"no endpoint {name!r} is being served; there are: {known}", "genflow endpoints ls")
    if found["node"] != NODE:
        raise UsageError(f"{name} is served by {found['node']}", "genflow jobs ls, then genflow jobs stop JOB")
    os.kill(found["pid"], signal.SIGTERM)
    end = time.monotonic() + DRAIN_S
    while time.monotonic() < end:
        if endpoints.get(store, name) is None and not endpoints.is_running(found):
            print(f"ended    {name}")
            return
        time.sleep(0.2)
    raise SetupError(f"{name} is still answering requests", f"wait, or kill process {found['pid']}")
