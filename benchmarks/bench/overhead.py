"""What genflow adds: to a bare training loop, to a Typer program, and before the first step."""

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.bench.bare import Bare
from benchmarks.bench.page import Listing, Row, Table
from benchmarks.bench.pairs import Turn, of_children, ratio, take_turns
from benchmarks.bench.precision import FORMAT, PRECISION
from benchmarks.bench.prepared import NAME, made_up
from benchmarks.bench.steps import Genflow
from genflow.data.stream import Stream
from genflow.recipe.schema import parse
from genflow.runs import plan
from genflow.storage.store import Store
from genflow.system.source_hash import resources_dir

SHAPE, ROWS, BATCH, STEPS, ROUNDS = (1, 28, 28), 4096, 64, 5, 40  # steps of a turn, turns of each contestant
STARTS = 5  # processes whose median is a part of the start
LOOP = f"""A training step on {BATCH} pictures of 28 x 28 pixels by `unet`: the job of `genflow train`, with its reading
of data, logs, checkpoints, pictures and held-out loss; the loop `fit` alone on a batch in memory; and a bare loop of
the same net, loss, optimizer and average (`benchmarks/bench/bare.py`). All compute in {FORMAT}.
The ratio is the time of genflow to that of the bare loop: **1.000 would cost nothing.**
"""
HELP = """`genflow --help` against the help of a Typer program with one command. **1.00 would cost nothing.**
"""
START = f"""CPU time of `genflow train flow_matching` until the second step begins, by part: the median of {STARTS}
starts.
"""
TYPER = '''import typer

app = typer.Typer()


@app.command()
def greet(name: str = "you") -> None:
    """Greet."""
    print(f"Hello {name}")


app()
'''
COMMAND = f"""
import time
parts = [("the command: Python", time.process_time())]
from genflow.cli import app
parts.append(("the command: modules of the command line", time.process_time()))
from genflow.commands import train as commands
from genflow.storage.store import Store
store = Store()
parts.append(("the command: the store", time.process_time()))
recipe = commands.recipe(store, "flow_matching", [], [], [], **{{"data.name": "{NAME}"}})
parts.append(("the command: the recipe", time.process_time()))
commands.document(store, recipe, fresh=False, planned=False)
parts.append(("the command: the document of the job", time.process_time()))
for name, seconds in parts:
    print("part", name, seconds, sep="|")
"""
JOB = f"""
import time
parts = [("the job: Python", time.process_time())]
import torch
parts.append(("the job: PyTorch", time.process_time()))
import jobs.train
parts.append(("the job: its modules", time.process_time()))
from jobs.runtime.train import worker
parts.append(("the job: modules of a training", time.process_time()))
class Marked(worker.Stream):
    def __call__(self, step):
        if self.stop - self.start == {BATCH} and step < 2:
            name = ("the job: journal, data, net and first pictures", "the job: the first step")[step]
            parts.append((name, time.process_time()))
        return super().__call__(step)
worker.Stream = Marked
recipe = {{"family": {{"kind": "flow_matching"}}, "data": {{"name": "{NAME}"}}, "name": "start"}}
recipe["train"] = {{"steps": 2, "batch": {BATCH}}}
jobs.train.main({{"recipe": recipe, "inputs": {{"fresh": True}}}}, lambda *_, **__: None)
for name, seconds in parts:
    print("part", name, seconds, sep="|")
"""


def tables(rounds: int = ROUNDS) -> Iterator[Table | Listing]:
    """The loop, the help, and the start.

    Args:
        rounds: turns of each contestant.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ, "GENFLOW_STORE": str(folder / "store"), "PYTHONPATH": str(resources_dir()),
            "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        }  # fmt: skip
        with patch.dict(os.environ, environment):
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # programs that are installed have bytecode
            data = made_up(Store(), SHAPE, ROWS)
            yield loop(data, rounds)
            program = folder / "greet.py"
            program.write_text(TYPER, encoding="utf-8")
            turns = {"genflow": _program("-m", "genflow.cli", "--help"), "typer": _program(str(program), "--help")}
            seconds = take_turns(turns, rounds // 2, clock=of_children)
            rows = [Row("a Typer program", "`genflow --help`", ratio(seconds["genflow"], seconds["typer"]), 1000)]
            yield Table("Overhead: the help", HELP, "ms", rows, heads=("bare", "genflow"))
            yield start()


def loop(data: Any, rounds: int) -> Table:
    """The job of a training in this process; before each turn of it, `fit` and the bare loop have their turns."""
    import jobs.train
    from jobs.runtime.train import worker

    train = {"batch": BATCH, "precision": PRECISION, "steps": (rounds + 1) * STEPS}
    document = {"family": {"kind": "flow_matching"}, "net": {"kind": "unet"}, "data": {"name": NAME}, "train": train}
    recipe = plan(Store(), parse(document)).recipe
    split = data.splits["train"]
    bare = Bare(recipe, data.facts, split.take(np.arange(len(split))), split.labels)
    others = {"bare": bare, "fit": Genflow(SHAPE, BATCH, net={"kind": "unet"})}
    seconds: dict[str, list[float]] = {name: [] for name in ("job", *others)}

    class Interleaved(Stream):
        """The batches of the job."""

        def __call__(self, step: int) -> Any:
            if step % STEPS == 0:
                if step > STEPS:  # the first turn warms up
                    seconds["job"].append(time.process_time() - self.began)
                for name, loop in list(others.items())[:: -1 if step // STEPS % 2 else 1]:
                    before = time.process_time()
                    loop.steps(STEPS)
                    if step > STEPS:
                        seconds[name].append(time.process_time() - before)
                self.began = time.process_time()
            return super().__call__(step)

    with patch.object(worker, "Stream", Interleaved), contextlib.redirect_stdout(io.StringIO()):
        jobs.train.main({"recipe": document}, lambda *_, **__: None)
    rows = [
        Row("bare loop", words, ratio(seconds[name], seconds["bare"]), 1000 / STEPS)
        for name, words in (("fit", "`fit` alone"), ("job", "the job of `genflow train`"))
    ]
    total = sum(seconds["job"]) / sum(seconds["bare"])
    notes = (
        f"The sum over all {len(seconds['job'])} turns, in a few of which the job draws pictures or saves a "
        f"checkpoint, is {total:.3f} times that of the bare loop."
    )
    return Table("Overhead: the loop", LOOP, "ms a step", rows, heads=("bare", "genflow"), form=".3f", notes=notes)


def start() -> Listing:
    """The parts of a command's start."""
    found: dict[str, list[float]] = {}
    for number in range(STARTS + 1):  # the first one writes bytecode
        for program in (COMMAND, JOB):
            command = [sys.executable, "-c", program]
            text = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
            before = 0.0
            for line in filter(lambda line: line.startswith("part|"), text.splitlines()):
                _, part, until = line.split("|")
                if number:
                    found.setdefault(part, []).append(float(until) - before)
                before = float(until)
    medians = {part: statistics.median(each) for part, each in found.items()}
    rows = [(part, f"{1000 * each:.0f}") for part, each in medians.items()]
    rows.append(("together", f"{1000 * sum(medians.values()):.0f}"))
    return Listing("Overhead: the start", START, ("part", "CPU, ms"), rows)


def _program(*arguments: str) -> Turn:
    def turn() -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    return turn
