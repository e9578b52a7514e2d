"""The commands: a table for `genflow --help`, and a group that imports the module of a command when it is called."""

import copy
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from genflow.cli.words import Command

# name: (module of genflow.cli, first paragraph of the help of the function with that name, or of the group `app`)
COMMANDS = {
    "quickstart": (
        "run", "Prepare digits, train three families (VAE, DDPM, flow matching), and write a comparison to report.html."
    ),
    "prepare": ("prepare", "Convert images to a dataset of Arrow shards in the store."),
    "train": ("train", "Train a model family on a dataset."),
    "tune": ("tune", "Search for better hyperparameters, and confirm the best ones with new seeds."),
    "cost": ("cost", "Compute what a training costs: arithmetic, memory per GPU, images per second and hours."),
    "reflow": ("reflow", "Draw pairs of noise and sample from a trained run."),
    "encode": (
        "encode", "Encode a dataset: its pictures with an autoencoder, its captions with a text encoder, or both."
    ),
    "evaluate": ("evaluate", "Measure sample quality, likelihood and speed of runs."),
    "compare": (
        "evaluate",
        "Measure runs, print a table, and write a self-contained HTML report; --out poster.png draws its first screen.",
    ),
    "report": ("report", "Write the HTML report of one run: its samples, quality, likelihood, speed and training."),
    "tables": ("tables", "Train all families with the same budget on your data, and print two comparison tables."),
    "recommend": (
        "recommend", "Recommend a run, sampler and number of steps to deploy, from all measurements in the store."
    ),
    "sample": ("sample", "Draw samples from a run, or from a served model with --endpoint."),
    "export": ("export", "Export a run for other tools."),
    "serve": ("serve", "Serve models over HTTP with a playground page, until Ctrl-C."),
    "run": ("run", "Run a pipeline: skip finished stages, and run independent stages in parallel."),
    "ui": (
        "ui",
        "Start the MLflow UI on 127.0.0.1, and print its address and those of the store's page and the Ray dashboard.",
    ),
    "families": (
        "families", "List the model families: objective, network evaluations per sample, likelihood, encoder."
    ),
    "recipe": ("recipe", "List the keys of a recipe, which --set sets, with meaning, default and range."),
    "doctor": ("doctor", "Check this machine, and with --cluster a cluster; print how to fix each problem."),
    "promote": ("promote", "Register a run as a model in MLflow under an alias."),
    "runs": ("runs", "List, show and delete runs in the store; alone, list them."),
    "data": ("data", "List, show and delete datasets and latents in the store; alone, list them."),
    "jobs": ("jobs", "List, follow and stop jobs on a cluster; alone, list them."),
    "endpoints": ("endpoints", "List and stop endpoints that `genflow serve` started; alone, list them."),
    "cluster": ("cluster", "Start, inspect and stop the machines of a Ray cluster."),
}  # fmt: skip


class Commands(Mapping[str, TyperCommand | TyperGroup]):
    """The commands by name; a value is made when it is read."""

    def __getitem__(self, name: str) -> TyperCommand | TyperGroup:
        module, _ = COMMANDS[name]
        found = importlib.import_module(f"genflow.cli.{module}")
        if hasattr(found, "app"):
            group = typer.main.get_group(found.app)
            group.name = name
            return group
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command(cls=Command)(getattr(found, name))
        command: Any = typer.main.get_command(alone)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Program(TyperGroup):
    """The group of all commands. To list them, it imports none of them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: Any = Commands()

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(self.commands)

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        listed = copy.copy(self)
        listed.commands = {name: TyperCommand(name, help=text) for name, (_, text) in COMMANDS.items()}
        TyperGroup.format_help(listed, ctx, formatter)
