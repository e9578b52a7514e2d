"""Reflow is data: a teacher turns noise into samples, and the pairs are what a straighter student learns from.

    noise_i = the draws of a seed that is a function of (seed, i)      x_i = the teacher's ODE from noise_i

A pair is a function of its number, so shards may be written by anybody in any order, and are the same bytes.

References:
    Flow Straight and Fast: Rectified Flow (Liu et al., 2022)                        https://arxiv.org/abs/2209.03003
    Improving the Training of Rectified Flows (Lee et al., 2024), for one round of it   https://arxiv.org/abs/2405.20320
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genflow import build
from genflow.data.pairs import write_pairs
from genflow.data.shards import Dataset, shard_name
from genflow.errors import UsageError
from genflow.families.base import Family
from genflow.maths.rng import SampleRng, key
from genflow.maths.samplers import SAMPLERS
from genflow.recipe.schema import Recipe
from genflow.sampling.engine import Engine
from genflow.storage.store import Artifact, Store
from genflow.system import source_hash
from genflow.system.source_hash import digest

SHARD = 1000  # pairs a shard
BATCH = 250  # drawn together; fixed, because a kernel may round differently in another company
ROOMS = (
    "genflow/sampling/reflow.py", "genflow/data/pairs.py", "genflow/sampling/engine.py", "genflow/maths",
    "genflow/families",
)  # fmt: skip


@dataclass(frozen=True)
class ReflowPlan:
    """Pairs that may not exist yet.

    Args:
        id: `<run's name>-<content address>`.
        run: the teacher.
        dataset: its dataset.
        count: pairs.
        seed: of noises and labels.
        options: of the teacher's sampling, complete.
    """

    id: str
    run: Artifact
    dataset: Artifact
    count: int
    seed: int
    options: dict[str, Any]

    @property
    def shards(self) -> list[tuple[str, int, int]]:
        """(file, first pair, last pair + 1) of each shard."""
        total = -(-self.count // SHARD)
        ends = [(n * SHARD, min((n + 1) * SHARD, self.count)) for n in range(total)]
        return [(shard_name(n, total), *between) for n, between in enumerate(ends)]


def plan(store: Store, reference: str, recipe: Recipe) -> ReflowPlan:
    """Name the pairs of a teacher.

    Args:
        store: where the teacher is, and its dataset.
        reference: the run.
        recipe: `reflow` says how many, `sample` how; what it leaves open is the teacher's own setting.

    Raises:
        UsageError: there is no such run, its samples are no function of its noise, or an option does not fit.
    """
    run = store.find("runs", reference)
    dataset = store.find("datasets", run.meta["dataset"])
    engine = Engine.load(run)
    if not engine.family.learns_pairs:
        raise UsageError(
            f"{engine.family.title} has no path between noise and data, so its pairs teach nothing",
            "use a run of flow_matching or ddpm",
        )
    options = build.sample_options(engine.family, {**engine.options, **recipe.sample})
    if SAMPLERS[options["sampler"]].stochastic or options["eta"]:
        raise UsageError("a stochastic sampler gives no pairs: its samples are no function of the noise",
                         "--set sample.sampler=midpoint, or another that draws nothing")  # fmt: skip
    deciding = [run.id, recipe.reflow.model_dump(mode="json"), options, source_hash.fingerprint(*ROOMS)]
    id = f"{run.name}-{digest(deciding)}"
    return ReflowPlan(id, run, dataset, recipe.reflow.pairs, recipe.reflow.seed, options)


class Teacher:
    """A trained family that writes pairs.

    Args:
        plan: whose, and how.
        device: where it runs.
    """

    def __init__(self, plan: ReflowPlan, device: str = "cpu") -> None:
        self.plan, self.engine = plan, Engine.load(plan.run, device=device)
        self._labels = Dataset.open(plan.dataset, verify=False).splits["train"].labels

    @property
    def family(self) -> Family:
        """The teacher itself."""
        return self.engine.family

    def pair(self, numbers: range) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Seeds (N,), labels (N,), noises and samples (N, C, H, W) of pairs by number."""
        seeds = [key("pair", self.plan.seed, number) for number in numbers]
        rng = SampleRng(seeds, "sample", self.engine.device)
        noise = rng.normal((len(seeds), *self.family.noise_shape))
        # the classes' balance is the data's: a random row's label
        labels = self._labels[[key("row", self.plan.seed, number) % len(self._labels) for number in numbers]]
        x = self.family.sample(noise, torch.from_numpy(labels).to(self.engine.device), rng, **self.plan.options).x
        return np.array(seeds), labels, noise.cpu().numpy(), x.float().cpu().numpy()

    def write(self, folder: Path, file: str, first: int, last: int) -> int:
        """Write a shard, whole or not at all; one that is there already is left. Returns how many pairs it has."""
        if not (folder / file).exists():
            parts = [self.pair(range(a, min(a + BATCH, last))) for a in range(first, last, BATCH)]
            seeds, labels, noise, x = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            attempt = folder / f"{file}.tmp-{os.uname().nodename}-{os.getpid()}"
            write_pairs(attempt, self.engine.facts, seeds, labels, noise, x)
            os.replace(attempt, folder / file)
        return last - first
