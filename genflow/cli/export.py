"""`genflow export`."""

from pathlib import Path
from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.options import AsJson, RunRef
from genflow.commands import prompting
from genflow.commands.references import find_run


def export(
    run: RunRef,
    to: Annotated[str, typer.Option(help="Format: safetensors, diffusers, torch_export or onnx.")] = "safetensors",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write; default: NAME-export.")] = None,
    device: Annotated[str, typer.Option(help="Device of the programs that torch_export writes.")] = "cpu",
    prompt: Annotated[
        list[str],
        typer.Option(help="Words whose embeddings are exported, too; repeatable; --prompts FILE: one on each line."),
    ] = [],
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with a prompt on each line.", hidden=True)
    ] = None,
    json: AsJson = False,
) -> None:
    """Export a run for other tools."""
    from genflow.sampling.engine import Engine
    from genflow.sampling.export import check_form, write
    from genflow.storage.store import Store
    from genflow.system import devices

    check_form(to)
    device = devices.choose(device)
    words = prompting.given(prompt, prompts)
    found = find_run(Store(), run)
    engine = Engine.load(found, device=device)
    folder = out or Path(f"{found.name}-export")
    write(found, engine, to, folder, words)
    prompting.name_cut(engine, words)
    if json:
        console.document({"schema": "genflow.export/1", "run": found.id, "path": str(folder.absolute()), "to": to})
        return
    weights = sum(p.numel() for p in engine.family.parameters())
    print(f"export   {folder}  {weights:,} weights of {found.id}, for {to}")
