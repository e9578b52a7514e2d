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
    """Start the MLflow UI on 127.0.0.1, and print its address and those of the store's page and the Ray dashboard.

    It opens at the newest run's experiment, with quality and time in columns.
    It first sends what MLflow lacks, such as after an outage.
    If MLFLOW_TRACKING_URI names a server, it prints the address of that server.
    """
    import contextlib
    import signal
    import subprocess
    import tempfile
    import time
    import webbrowser

    from genflow.storage.store import Store
    from genflow.system import environment, ports
    from genflow.tracking import database, pages, sync
    from genflow.tracking.experiments import VIEW
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
    shown = sync.newest_experiment(store)
    table = f"#/experiments/{shown}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}" if shown else ""
    if re.match("https?:", uri):
        address = f"{without_password(uri).rstrip('/')}/{table}"
        print(f"MLflow         {address}   (the server that MLFLOW_TRACKING_URI names)", flush=True)
        if open_browser:
            webbrowser.open(address)
        return
    port = port or ports.free_port()
    if not ports.is_free(port):
        raise SetupError(f"port {port} on 127.0.0.1 is already in use", "genflow ui --port 0")
    dashboard = os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    running = not ports.is_free(int(dashboard.rpartition(":")[2].strip("/") or 8265))
    print(f"Ray dashboard  {dashboard if running else 'no cluster is running on this machine'}", flush=True)
    command = database.ui_command(store, "127.0.0.1", port)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, stdin=subprocess.DEVNULL,
            start_new_session=True,  # the server has processes of its own, which end with it
        )  # fmt: skip
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            while process.poll() is None and not ports.answers(port):
                time.sleep(0.1)
            if process.poll() is None:
                # the first page of the server's own start leads to the newest experiment
                address = f"http://127.0.0.1:{port}/{'' if pages.is_registered() else table}"
                print(f"MLflow         {address}   (press Ctrl-C to stop)", flush=True)
                if open_browser:
                    webbrowser.open(address)
            code = process.wait()
        except KeyboardInterrupt:
            return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            signal.signal(signal.SIGTERM, before)
        if code:
            log.seek(0)
            said = log.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            why = f": {said[0]}" if said else ""
            raise SetupError(f"the MLflow server failed with exit code {code}{why}", "genflow doctor")
