"""Peak memory of `genflow train` and of a bare loop with the same net and batch.

python -m benchmarks.bench.memory STEPS   runs the bare loop on the dataset of the store
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np

from benchmarks.bench.page import Row, Table
from benchmarks.bench.pairs import ratio
from benchmarks.bench.precision import FORMAT, PRECISION
from benchmarks.bench.prepared import NAME, made_up
from genflow.data.shards import Dataset
from genflow.recipe.schema import Recipe, parse
from genflow.runs import plan
from genflow.storage.store import Store
from genflow.system.source_hash import resources_dir

SHAPE, ROWS, BATCH, STEPS, ROUNDS = (1, 28, 28), 20_000, 64, 20, 6  # steps of a training, trainings of each contestant
TEXT = f"""The largest resident memory of a process that makes {STEPS} steps on {BATCH} pictures of 28 x 28 pixels by
`unet`, of {ROWS:,} in a dataset: the command `genflow train` with its job, whichever is larger, and a bare loop of the
same net, loss, optimizer and average (`benchmarks/bench/bare.py`). Both compute in {FORMAT}.
**1.00 would cost nothing.**
"""

STARTER = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def tables(rounds: int = ROUNDS) -> Iterator[Table]:
    """The table.

    Args:
        rounds: trainings of each contestant.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ, "GENFLOW_STORE": folder, "PYTHONPATH": str(resources_dir()), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with patch.dict(os.environ, environment):
            made_up(Store(), SHAPE, ROWS)
            command = [
                "genflow.cli", "train", "flow_matching", "--data", NAME, "--steps", str(STEPS),
                "--set", "net.kind=unet", "--set", f"train.batch={BATCH}", "--set", f"train.precision={PRECISION}",
            ]  # fmt: skip
            found: dict[str, list[float]] = {"genflow": [], "bare": []}
            for number in range(rounds):
                found["genflow"].append(largest(*command, "--set", f"train.seed={number}"))
                found["bare"].append(largest("benchmarks.bench.memory", str(STEPS)))
    rows = [Row("a bare loop", "`genflow train`", ratio(found["genflow"], found["bare"]), 1)]
    yield Table("Memory", TEXT, "MB", rows, heads=("bare", "genflow"))


def largest(*arguments: str) -> float:
    """The largest resident memory of a Python process or of one that it has started, in MB.

    A small process starts it, because the kernel counts the memory of the process that starts another one, too.
    """
    command = [sys.executable, "-c", STARTER, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    return int(done.stdout.splitlines()[-1]) / (2**20 if sys.platform == "darwin" else 2**10)


def recipe() -> Recipe:
    """The resolved recipe of the command."""
    document = {
        "family": {"kind": "flow_matching"}, "net": {"kind": "unet"}, "data": {"name": NAME},
        "train": {"steps": STEPS, "batch": BATCH, "precision": PRECISION},
    }  # fmt: skip
    return plan(Store(), parse(document)).recipe


def main() -> None:
    """Train the bare loop."""
    import torch

    from benchmarks.bench.bare import Bare

    torch.set_num_threads(1)
    data = Dataset.open(next(iter(Store().artifacts("datasets"))))
    split = data.splits["train"]
    Bare(recipe(), data.facts, split.take(np.arange(len(split))), split.labels).steps(int(sys.argv[1]))


if __name__ == "__main__":
    main()
