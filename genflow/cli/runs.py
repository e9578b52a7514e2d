"""`genflow runs`: list, show and delete runs in the store."""

import contextlib
from typing import TYPE_CHECKING

import typer

from genflow.cli import console
from genflow.cli.dispatch import use_of
from genflow.cli.options import AsJson, RunRef, Yes
from genflow.cli.removal import remove
from genflow.commands.references import find_run
from genflow.errors import GenflowError

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.storage.store import Store

LATENTS = 3  # column of `runs ls`; omitted if every run learned its dataset
app = typer.Typer(help="List, show and delete runs in the store.", no_args_is_help=True)


@app.command("ls")
def list_runs(json: AsJson = False) -> None:
    """List the runs in the store."""
    from genflow.storage.manifest import warn
    from genflow.storage.store import Store

    store = Store()
    finished, damaged = store.scan("runs")
    for error in damaged.values():
        warn(error)
    ids = {run.id for run in finished} | set(damaged)
    unfinished = [name for name in store.names("runs") if name not in ids]
    training = {name: process for name in unfinished if (process := store.holder("runs", name))}
    if json:
        runs = [{"run": run.id, "name": run.name, "created": run.manifest["created"], **run.meta} for run in finished]
        console.document({"schema": "genflow.runs/1", "runs": runs, "unfinished": unfinished,
                          "training": training, "damaged": [*damaged]})  # fmt: skip
        return
    rows: list[tuple[str, ...]] = [
        (run.id, *(run.meta.get(key) or "" for key in ("family", "dataset", "latents")),
         f"{run.meta.get('steps', 0):,}", console.duration(run.meta.get("seconds")),
         console.date(run.manifest.get("created", 0)))
        for run in finished
    ]  # fmt: skip
    rows += [_unfinished(store, name, training.get(name, "")) for name in unfinished]
    if not rows:
        print(f"no runs in {store.url}")
        console.next_commands("genflow quickstart", "genflow train flow_matching --data NAME")
        return
    heads: tuple[str, ...] = ("run", "family", "data", "latents", "steps", "time", "made")
    if not any(row[LATENTS] for row in rows):
        heads, *rows = [(*row[:LATENTS], *row[LATENTS + 1 :]) for row in (heads, *rows)]
    print(console.table(heads, rows, left=heads.index("steps")))


def _unfinished(store: "Store", id: str, process: str) -> tuple[str, ...]:
    """The row of a run that is trained now, or that was interrupted."""
    from genflow.recipe.files import read

    folder = store.folder("runs", id)
    family = data = latents = ""
    with contextlib.suppress(GenflowError, OSError, AttributeError):
        recipe = read(folder / "recipe.yaml")
        family, data = str(recipe["family"].get("kind", "")), str(recipe["data"].get("name", ""))
        latents = str(recipe["data"].get("latents", ""))
    steps = sorted(path.name for path in folder.glob("checkpoints/step_*") if ".tmp-" not in path.name)
    done = f"{int(steps[-1].removeprefix('step_')):,}" if steps else ""
    state = f"training: process {process}" if process else "unfinished: run the same command to resume"
    return id, family, data, latents, done, "", state


@app.command()
def show(run: RunRef, json: AsJson = False) -> None:
    """Show a run: its settings, its folder and its evaluations."""
    from genflow.recipe.files import read
    from genflow.storage.store import Store

    store = Store()
    found = find_run(store, run)
    measured = [e for e in store.artifacts("evaluations") if found.id in e.manifest.get("parents", [])]
    document = {
        "schema": "genflow.run.show/1", "run": found.id, "name": found.name, "path": str(found.path), **found.meta,
        "recipe": read(found.file("recipe.yaml")), "evaluations": [e.id for e in measured],
    }  # fmt: skip
    if json:
        console.document(document)
        return
    width = max(len(key) for key in found.meta)
    print(f"{'run'.ljust(width)}  {found.id}\n{'path'.ljust(width)}  {found.path}")
    for key, value in found.meta.items():
        print(f"{key.ljust(width)}  {value}")
    for evaluation in measured:
        print(f"{'measured'.ljust(width)}  {evaluation.id}")
    use = use_of(found.id, found.meta.get("family"), found.meta.get("dataset"))
    console.next_commands(use, f"genflow evaluate {found.id}")


@app.command()
def rm(run: RunRef, yes: Yes = False) -> None:
    """Delete a run from the store, finished or not."""
    remove("runs", run, yes)
