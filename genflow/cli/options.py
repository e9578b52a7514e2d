"""Flags and arguments that several commands share, and the completion of their values."""

from pathlib import Path
from typing import Annotated

import typer


def complete_family(incomplete: str) -> list[str]:
    """The kinds of family that begin so."""
    from genflow.families import kinds

    return [name for name in kinds() if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """The runs of the store that begin so, by name and by id."""
    return _complete("runs", incomplete)


def complete_data(incomplete: str) -> list[str]:
    """The datasets of the store that begin so, by name and by id."""
    return _complete("datasets", incomplete)


def _complete(kind: str, incomplete: str) -> list[str]:
    from genflow.storage.store import Store

    artifacts = Store().artifacts(kind)
    names = [a.name for a in artifacts] + [a.id for a in artifacts]
    return sorted({name for name in names if name.startswith(incomplete)})


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Sets = Annotated[list[str], typer.Option("--set", "-s", metavar="KEY=VALUE", help="Set any key of the recipe.")]
Config = Annotated[list[Path], typer.Option("--config", "-c", metavar="FILE", help="A recipe file; repeatable.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and stop.")]
OnCluster = Annotated[bool, typer.Option("--cluster/--local", help="Run on a Ray cluster, or on this machine.")]
Address = Annotated[str, typer.Option(help="The cluster's dashboard, such as http://127.0.0.1:8265.")]
Data = Annotated[str, typer.Option(help="The dataset.", autocompletion=complete_data)]
Init = Annotated[str, typer.Option(help="A run to start from, or to learn from.", autocompletion=complete_run)]
Samples = Annotated[int | None, typer.Option(help="Samples to measure on.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
RunRef = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's id, prefix, name, `latest`, best:fd, or models:/NAME@ALIAS.",
        autocompletion=complete_run,
    ),
]
RunRefs = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Runs of one dataset.", autocompletion=complete_run)
]
DataRef = Annotated[
    str, typer.Argument(help="A dataset's id, prefix, name, or `latest`.", autocompletion=complete_data)
]
