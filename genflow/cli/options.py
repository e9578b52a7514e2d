"""Flags and arguments shared by several commands, and shell completion of their values."""

from pathlib import Path
from typing import Annotated

import typer


def complete_family(incomplete: str) -> list[str]:
    """Family names that start with the given text."""
    from genflow.families import kinds

    return [name for name in kinds() if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Names and ids of runs in the store that start with the given text."""
    return _complete("runs", incomplete)


def complete_data(incomplete: str) -> list[str]:
    """Names and ids of datasets in the store that start with the given text."""
    return _complete("datasets", incomplete)


def _complete(kind: str, incomplete: str) -> list[str]:
    from genflow.storage.store import Store

    artifacts, _ = Store().scan(kind)  # no warning: the shell is waiting for words
    names = [a.name for a in artifacts] + [a.id for a in artifacts]
    return sorted({name for name in names if name.startswith(incomplete)})


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Sets = Annotated[
    list[str],
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Set a recipe key, such as train.lr=1e-4; repeatable."),
]
Config = Annotated[list[Path], typer.Option("--config", "-c", metavar="FILE", help="Recipe file; repeatable.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and exit.")]
OnCluster = Annotated[bool, typer.Option("--cluster/--local", help="Run on a Ray cluster or on this machine.")]
Address = Annotated[str, typer.Option(help="Cluster dashboard, such as http://127.0.0.1:8265.")]
HiddenAddress = Annotated[str, typer.Option(help="Cluster dashboard, such as http://127.0.0.1:8265.", hidden=True)]
FamilyOrFile = Annotated[
    str,
    typer.Argument(help="vae, ddpm, flow_matching ...; default: the family in FILE.", autocompletion=complete_family),
]
Data = Annotated[str, typer.Option(help="Dataset name, id or `latest`.", autocompletion=complete_data)]
Latents = Annotated[str, typer.Option(help="Train on these latents; `auto`: make them first; `none`: train on pixels.")]
Text = Annotated[str, typer.Option(help="Read captions, not labels: text encoder (minilm or a folder) or embeddings.")]
Init = Annotated[
    str,
    typer.Option(
        help="Run or local Stable Diffusion 3 folder whose weights are the start; or the teacher run.",
        autocompletion=complete_run,
    ),
]
Size = Annotated[
    str, typer.Option(metavar="xs|s|m|l|xl", help="Net, batch and learning rate, from a laptop (xs) to a node of GPUs.")
]
Samples = Annotated[
    int | None,
    typer.Option(help="Samples to draw and measure; compare and report: else as many as take no longer than training."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps; auto: the fastest that PyTorch finds.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
RunRef = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Run id, its first characters, name, `latest`, best:fd or models:/NAME@ALIAS.",
        autocompletion=complete_run,
    ),
]
RunRefs = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Runs trained on the same dataset.", autocompletion=complete_run)
]
DataRef = Annotated[
    str, typer.Argument(help="Dataset id, its first characters, name, or `latest`.", autocompletion=complete_data)
]
