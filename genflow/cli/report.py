"""`genflow report`."""

from pathlib import Path
from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.dispatch import send, use_of
from genflow.cli.evaluate import Out, check_report_path, copy_report, report_file, show_report, show_table
from genflow.cli.options import Address, AsJson, OnCluster, RunRef, Samples, Sets


def report(
    run: RunRef = "latest",
    out: Out = None,
    samples: Samples = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    json: AsJson = False,
) -> None:
    """Write the HTML report of one run: its samples, quality, likelihood, speed and training.

    --out poster.png draws its first screen. Several runs: genflow compare RUN RUN.

    A run that was measured is not measured again, unless --samples or --set ask for something else.
    """
    from genflow.commands import measure
    from genflow.commands.references import find_run
    from genflow.storage.store import Store

    check_report_path(out)
    store = Store()
    found = find_run(store, run)
    before = measure.settings_of(store, found.id)
    document = measure.document(store, [found.id], before, sets, {"evaluate.samples": samples}, "compare")
    done = send("compare", document, store, cluster, address, json=json)
    copy_report(done, out)
    if open_browser:
        typer.launch(f"file://{Path(report_file(done)).absolute()}")
    if json:
        console.document(done)
        return
    show_table(done)
    show_report(done, out)
    meta = found.meta
    use = use_of(found.id, meta.get("family"), meta.get("dataset"), texts=meta.get("texts"))
    console.next_commands(f"genflow compare {found.id} RUN", use)
