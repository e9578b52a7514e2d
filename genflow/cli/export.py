"""What `genflow export` does."""

from pathlib import Path

from genflow.cli import console
from genflow.cli.dispatch import find_run
from genflow.sampling.engine import Engine
from genflow.sampling.export import check_form, write
from genflow.storage.store import Store


def export(reference: str, to: str, out: Path | None, *, json: bool) -> None:
    """`genflow export`."""
    check_form(to)
    run = find_run(Store(), reference)
    engine = Engine.load(run)
    folder = out or Path(f"{run.name}-export")
    write(run, engine, to, folder)
    if json:
        console.document({"schema": "genflow.export/1", "run": run.id, "path": str(folder.absolute()), "to": to})
        return
    weights = sum(p.numel() for p in engine.family.parameters())
    print(f"export   {folder}  {weights:,} weights of {run.id}, for {to}")
