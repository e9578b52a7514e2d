"""`genflow runs`: list, show and delete runs in the store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import check_output_path, use_of
from genflow.cli.options import AsJson, RunRef, Yes
from genflow.cli.removal import remove
from genflow.cli.words import Listing
from genflow.commands.references import find_run
from genflow.system.streams import NONE

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.commands.listing import RunRow
    from genflow.storage.store import Store

app = typer.Typer(cls=Listing, help="List, show and delete runs in the store; alone, list them.")
OPTIONAL = ("latents", "fd", "× floor", "bits/dim")  # columns of `runs ls` that are omitted if no run has them
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Also write a page with pictures of runs and datasets, x.html.")
]
Sort = Annotated[str, typer.Option(help="Order: made, fd, floor, bits, minutes, name, family or data.")]


@app.command("ls")
def list_runs(sort: Sort = "made", out: Out = None, json: AsJson = False) -> None:
    """List the runs in the store, those that are trained now, and those that were interrupted.

    fd is that of the newest evaluation, × floor its multiple of what real pictures reach, min the minutes of training.
    """
    from genflow.commands import listing
    from genflow.storage.manifest import warn
    from genflow.storage.store import Store

    check_output_path(out)
    store = Store()
    if out:
        write_page(store, out)
    finished, damaged = store.scan("runs")
    for error in damaged.values():
        warn(error)
    rows = [row for row in listing.runs(store, finished) if row.run not in damaged]
    rows = listing.sort_runs(rows, sort)
    if json:
        console.document(_document(rows, {run.id: run.meta for run in finished}, [*damaged]))
        return
    if not rows:
        print(f"no runs in {store.url}")
        console.next_commands("genflow quickstart", "genflow train flow_matching --data NAME")
        return
    cells = [_cells(row) for row in rows]
    heads = [head for head in cells[0] if head not in OPTIONAL or any(row[head] not in ("", NONE) for row in cells)]
    left = heads.index("fd") if "fd" in heads else heads.index("min")
    print(console.table(heads, [[row[head] for head in heads] for row in cells], left=left))


def write_page(store: "Store", out: Path) -> None:
    """Write the page of a store.

    Raises:
        SetupError: it cannot be written.
    """
    from genflow.commands import store_page
    from genflow.sampling.files import output_error
    from genflow.storage.files import write_atomically

    page = store_page.render(store, out.absolute().parent)
    try:
        write_atomically(out, page)
    except OSError as error:
        raise output_error(error, out) from error


def _document(rows: "list[RunRow]", metas: dict[str, Any], damaged: list[str]) -> dict[str, Any]:
    finished = [
        {"run": row.run, "name": row.name, "created": row.made, **metas[row.run], "fd": row.fd, "floors": row.floors,
         "likelihood": row.likelihood}
        for row in rows
        if row.run in metas
    ]  # fmt: skip
    unfinished = [row for row in rows if row.run not in metas]
    training = {row.run: row.process for row in unfinished if row.process}
    return {"schema": "genflow.runs/1", "runs": finished, "unfinished": [row.run for row in unfinished],
            "training": training, "damaged": damaged}  # fmt: skip


def _cells(row: "RunRow") -> dict[str, str]:
    """The cells of a run by the head of their column."""
    from genflow.evaluation.metrics.base import number
    from genflow.evaluation.metrics.likelihood import likelihood_text

    likelihood = likelihood_text(row.likelihood).partition(" ±")[0] if row.likelihood else NONE
    states = {
        "training": f"training: process {row.process}, step {row.steps or 0:,}",
        "unfinished": "unfinished: run the same command to resume",
    }
    return {
        "run": row.run, "family": row.family, "data": row.dataset, "latents": row.latents,
        "fd": NONE if row.fd is None else number(row.fd),
        "× floor": NONE if row.floors is None else f"{row.floors:.1f}",
        "bits/dim": likelihood,
        "min": NONE if row.minutes is None else f"{row.minutes:,.1f}",
        "made": console.date(row.made) if row.made else states[row.state],
    }  # fmt: skip


@app.command()
def show(run: RunRef, json: AsJson = False) -> None:
    """Show a run: its headline, its settings, its folder and its evaluations."""
    from genflow.commands import listing
    from genflow.recipe.files import read
    from genflow.storage.store import Store

    store = Store()
    found = find_run(store, run)
    measured = [e for e in store.artifacts("evaluations") if found.id in e.manifest.get("parents", [])]
    document = {
        "schema": "genflow.run.show/1", "run": found.id, "name": found.name, "path": str(found.path), **found.meta,
        "recipe": read(found.file("recipe.yaml")), "evaluations": [e.id for e in measured],
    }  # fmt: skip
    row = listing.row_of(store, found)
    document["headline"] = listing.headline(row)
    if json:
        console.document(document)
        return
    width = max(len(key) for key in found.meta)
    print(f"{'run'.ljust(width)}  {found.id}\n{'headline'.ljust(width)}  {document['headline']}")
    print(f"{'path'.ljust(width)}  {found.path}")
    for key, value in found.meta.items():
        print(f"{key.ljust(width)}  {value}")
    for evaluation in measured:
        print(f"{'measured'.ljust(width)}  {evaluation.id}")
    if row.picture:
        print(f"{'samples'.ljust(width)}  {row.picture}")
    use = use_of(found.id, found.meta.get("family"), found.meta.get("dataset"), texts=found.meta.get("texts"))
    console.next_commands(use, f"genflow evaluate {found.id}")


@app.command()
def rm(run: RunRef, yes: Yes = False) -> None:
    """Delete a run from the store, finished or not."""
    remove("runs", run, yes)
