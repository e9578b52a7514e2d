"""Reflow is a dataset: a teacher maps noise to samples, and a student with straighter paths trains on the pairs.

    noise_i = noise of a seed that is a function of (seed, i)      x_i = the teacher's ODE from noise_i

A pair is a function of its number, so any process may write any shard in any order, with the same bytes.

References:
    Flow Straight and Fast: Rectified Flow (Liu et al., 2022)                        https://arxiv.org/abs/2209.03003
    Improving the Training of Rectified Flows (Lee et al., 2024), for one round of it   https://arxiv.org/abs/2405.20320
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genflow import build
from genflow.data.pairs import write_pairs
from genflow.data.shard_format import shard_ranges
from genflow.data.shards import Dataset
from genflow.data.texts import Texts
from genflow.errors import UsageError
from genflow.families.base import Family
from genflow.maths.rng import SampleRng, key
from genflow.maths.samplers import SAMPLERS
from genflow.recipe.schema import Recipe
from genflow.sampling import autoencoders
from genflow.sampling.engine import Engine
from genflow.storage.files import replacing
from genflow.storage.store import Artifact, Store
from genflow.system import source_hash
from genflow.system.source_hash import digest

SHARD = 1000  # pairs in each shard
BATCH = 250  # batch size; fixed, because the rounding of a kernel may depend on it


@dataclass(frozen=True)
class ReflowPlan:
    """Pairs that may not exist yet.

    Args:
        id: `<run's name>-<content address>`.
        run: the teacher.
        dataset: the teacher's dataset.
        count: number of pairs.
        seed: of noises and labels.
        options: all sampling options of the teacher.
        latents: the id of the latents that the teacher learned; empty: it learned pictures or points.
        texts: the id of the text embeddings that it read; empty: it read labels.
        embeddings: these embeddings, if the store has them; None: captions need the text encoder.
    """

    id: str
    run: Artifact
    dataset: Artifact
    count: int
    seed: int
    options: dict[str, Any]
    latents: str = ""
    texts: str = ""
    embeddings: Artifact | None = None

    @property
    def name(self) -> str:
        """The name without the hash."""
        return self.run.name

    @property
    def parents(self) -> list[str]:
        """The ids of the artifacts that the pairs are made from."""
        return [self.run.id, self.dataset.id, *([self.embeddings.id] if self.embeddings else [])]

    @property
    def shards(self) -> list[tuple[str, int, int]]:
        """(file, first pair, last pair + 1) of each shard."""
        return shard_ranges(self.count, SHARD)


def plan(store: Store, reference: str, recipe: Recipe) -> ReflowPlan:
    """Check the options, and derive the id of a teacher's pairs.

    Args:
        store: holds the teacher and its dataset.
        reference: the teacher's run.
        recipe: `reflow` has the number of pairs, and `sample` overrides the teacher's sampling options.

    Raises:
        UsageError: there is no such run, it is an autoencoder, its samples are no function of its noise, or an option
            is invalid.
    """
    run = store.find("runs", reference)
    dataset = store.find("datasets", run.meta["dataset"])
    autoencoders.require_sampler(run)
    engine = Engine.load(run)
    if not engine.family.learns_pairs:
        raise UsageError(
            f"{engine.family.title} has no path between noise and data, so a student cannot learn from its pairs",
            "use a run of flow_matching or ddpm",
        )
    options = build.sample_options(engine.family, {**engine.options, **recipe.sample})
    if SAMPLERS[options["sampler"]].stochastic or options["eta"]:
        raise UsageError("a stochastic sampler gives no pairs: its samples are no function of the noise",
                         "--set sample.sampler=midpoint, or another deterministic sampler")  # fmt: skip
    files = build.source_files(engine.recipe, engine.family.facts)
    also = ("genflow/text_encoders",) if engine.prompts else ()
    code = source_hash.code_of("genflow/sampling/reflow.py", *files, also=also)
    deciding = [run.id, recipe.reflow.model_dump(mode="json"), options, code]
    id = f"{run.name}-{digest(deciding)}"
    learned = engine.recipe.data
    count, seed = recipe.reflow.pairs, recipe.reflow.seed
    embeddings = store.get("texts", learned.text) if learned.text else None
    return ReflowPlan(id, run, dataset, count, seed, options, learned.latents, learned.text, embeddings)


class Teacher:
    """A trained family that writes pairs.

    Args:
        plan: of the pairs.
        device: a torch device's name.
    """

    def __init__(self, plan: ReflowPlan, device: str = "cpu") -> None:
        self.plan, self.engine = plan, Engine.load(plan.run, device=device)
        if self.engine.prompts and plan.embeddings:
            self.engine.prompts.more = Texts.of(plan.embeddings)
        self._split = Dataset.open(plan.dataset, verify=False).splits["train"]

    @property
    def family(self) -> Family:
        """The teacher's family."""
        return self.engine.family

    def pair(self, numbers: range) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Seeds (N,), labels (N,), noises and samples (N, C, H, W), and captions (N,) if it reads some, by number."""
        seeds = [key("pair", self.plan.seed, number) for number in numbers]
        rng = SampleRng(seeds, "sample", self.engine.device)
        noise = rng.normal((len(seeds), *self.family.noise_shape))
        # the label and a caption of a random training row, so that they are as frequent as in the data
        rows = np.array([key("row", self.plan.seed, number) % len(self._split) for number in numbers])
        labels, captions = self._split.labels_of(rows), []
        if self.engine.prompts:
            known = zip(numbers, self._split.column("captions", rows), strict=True)
            captions = [own[key("caption", self.plan.seed, n) % len(own)] if own else "" for n, own in known]
        condition = self.engine.condition(labels, captions or None)
        x = self.family.sample(noise, condition, rng, **self.plan.options).x
        return np.array(seeds), labels, noise.cpu().numpy(), x.float().cpu().numpy(), captions

    def write(self, path: Path, first: int, last: int) -> None:
        """Write a shard atomically."""
        parts = [self.pair(range(a, min(a + BATCH, last))) for a in range(first, last, BATCH)]
        *arrays, captions = zip(*parts, strict=True)
        seeds, labels, noise, x = (np.concatenate(columns) for columns in arrays)
        with replacing(path) as attempt:
            words = [caption for own in captions for caption in own]
            write_pairs(attempt, self.family.facts, seeds, labels, noise, x, words)
