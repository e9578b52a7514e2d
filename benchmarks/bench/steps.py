"""genflow's training loop as a contestant: `fit` in a thread that makes a few steps at a time."""

import threading
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.precision import PRECISION
from genflow import build
from genflow.batch import Batch
from genflow.recipe.schema import parse
from genflow.specs import DataSpec
from genflow.training.loop import fit
from genflow.training.session import Session

CLASSES = 10
ENDLESS = 10**9  # steps of a training that only the end of the process ends


def pictures(shape: tuple[int, int, int], rows: int) -> tuple[Tensor, Tensor]:
    """Made-up pictures (rows, *shape) in [-1, 1] and their labels; the time of a step does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((rows, *shape), generator=generator) * 2 - 1
    return x, torch.randint(0, CLASSES, (rows,), generator=generator)


class Genflow:
    """A training of genflow that waits between turns.

    Args:
        shape: of a picture.
        batch: rows of a step.
        facts: of the data, if they are not pictures; with the shape.
        sections: of the recipe.
    """

    def __init__(
        self, shape: tuple[int, int, int], batch: int, facts: DataSpec | None = None, **sections: dict[str, Any]
    ) -> None:
        facts = facts or DataSpec(shape, 256, tuple(map(str, range(CLASSES))), {"train": 60_000, "val": 0})
        train = {"steps": ENDLESS, "batch": batch, "precision": PRECISION, **sections.pop("train", {})}
        self.recipe = build.resolve(parse({"family": {"kind": "flow_matching"}, "train": train, **sections}), facts)
        torch.manual_seed(0)
        self.family = build.family_of(self.recipe, facts)
        self._x, self._labels = pictures(shape, batch)
        self._left = 0
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def steps(self, number: int) -> None:
        """Make a few steps."""
        self._left = number
        self._go.release()
        self._done.acquire()

    def _train(self) -> None:
        self._go.acquire()
        fit(self.family, self._batch, Session(threads=1), self.recipe.train)

    def _batch(self, step: int) -> Batch:
        if not self._left:
            self._done.release()
            self._go.acquire()
        self._left -= 1
        return Batch(self._x, self._labels)
