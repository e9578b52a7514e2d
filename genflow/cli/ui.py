"""`genflow ui`."""

import os
import re
from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.runs import write_page
from genflow.errors import GenflowError, SetupError

SEND_S = 60.0  # total time of requests before MLflow's pages open


def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0: any free port.")] = 5000,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Start the MLflow UI on 127.0.0.1, and print the addresses of the store's page and of the Ray dashboard.

    First send what MLflow lacks, such as after an outage. If MLFLOW_TRACKING_URI names a server, print its address.
    """
    import subprocess
    import webbrowser

    from genflow.storage.store import Store
    from genflow.system import environment
    from genflow.tracking import database, sync
    from genflow.tracking.mlflow_client import without_password

    environment.set_defaults()
    store = Store()
    uri = database.prepare(store)
    database.check(uri)
    page = store.root / "index.html"
    try:
        write_page(store, page)
        print(f"Store          {page.as_uri()}", flush=True)
    except GenflowError as error:  # such as a store that cannot be written: MLflow's pages may still open
        console.note(f"warning: {error.message}")
    sent = sync.sync(store, limit_s=SEND_S)
    if not sent.complete:
        console.note(f"warning: MLflow lacks some data of this store: {sent.problem}")
    if re.match("https?:", uri):
        address = without_password(uri)
        print(f"MLflow         {address}   (the server that MLFLOW_TRACKING_URI names)", flush=True)
        if open_browser:
            webbrowser.open(address)
        return
    port = port or environment.free_port()
    if not environment.is_free(port):
        raise SetupError(f"port {port} on 127.0.0.1 is already in use", "genflow ui --port 0")
    address = f"http://127.0.0.1:{port}"
    print(f"MLflow         {address}/#/experiments   (press Ctrl-C to stop)", flush=True)
    dashboard = os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    running = not environment.is_free(int(dashboard.rpartition(":")[2].strip("/") or 8265))
    print(f"Ray dashboard  {dashboard if running else 'no cluster is running on this machine'}", flush=True)
    if open_browser:
        webbrowser.open(address)
    process = subprocess.Popen(database.ui_command(store, "127.0.0.1", port))
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return
    if code:
        raise SetupError(f"the MLflow server failed with exit code {code}", "genflow doctor")
