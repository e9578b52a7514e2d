"""`genflow export`."""

from pathlib import Path
from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.dispatch import find_run
from genflow.cli.options import AsJson, RunRef


def export(
    run: RunRef,
    to: Annotated[str, typer.Option(help="Format: safetensors, diffusers or torch_export.")] = "safetensors",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write; default: NAME-export.")] = None,
    device: Annotated[str, typer.Option(help="Device of the program that torch_export writes.")] = "cpu",
    json: AsJson = False,
) -> None:
    """Export a run for other tools."""
    from genflow.sampling.engine import Engine
    from genflow.sampling.export import check_form, write
    from genflow.storage.store import Store
    from genflow.system import devices

    check_form(to)
    device = devices.choose(device)
    found = find_run(Store(), run)
    engine = Engine.load(found, device=device)
    folder = out or Path(f"{found.name}-export")
    write(found, engine, to, folder)
    if json:
        console.document({"schema": "genflow.export/1", "run": found.id, "path": str(folder.absolute()), "to": to})
        return
    weights = sum(p.numel() for p in engine.family.parameters())
    print(f"export   {folder}  {weights:,} weights of {found.id}, for {to}")
