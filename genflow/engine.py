"""The engine: requests -> noise by seed -> family.sample -> pictures. Knows no HTTP, no Ray, no training.

A sample is a function of its seed: its noise, and every draw on its way, come from a generator of its own.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow import build, checkpoint
from genflow.data.shards import FACTS, from_x, to_x
from genflow.errors import DataError, UsageError
from genflow.facts import Facts
from genflow.families.base import Family
from genflow.maths.seeds import SampleRng
from genflow.recipe import Recipe, parse
from genflow.recipe import read as read_recipe
from genflow.store import Artifact

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Drawn:
    """Samples and what they cost.

    Args:
        images: (N, H, W, C) uint8 grey levels 0..K-1, or (N, 1, 1, 2) float32 points.
        labels: (N,) the labels that were asked for.
        nfe: network evaluations each sample took.
        seconds: wall-clock seconds for all of them.
    """

    images: np.ndarray
    labels: np.ndarray
    nfe: int
    seconds: float


class Engine:
    """A trained family, ready to sample.

    Args:
        family: with the weights to use, in eval mode.
        recipe: resolved.
        step: the training step the weights belong to.
        device: where to run.
        frozen: take the family over for good; False leaves one that is still being trained as it is.
    """

    def __init__(
        self, family: Family, recipe: Recipe, step: int = 0, device: str = "cpu", *, frozen: bool = True
    ) -> None:
        self.family = family.to(device).eval().requires_grad_(False) if frozen else family
        self.recipe, self.step, self.device = recipe, step, device
        self.facts: Facts = family.facts
        self.options: dict[str, Any] = dict(recipe.sample)

    @classmethod
    def load(cls, run: Artifact, *, average: bool = True, device: str = "cpu") -> "Engine":
        """The engine of a finished run.

        Raises:
            DataError: its checkpoint is missing or corrupt.
        """
        folder = checkpoint.Checkpoints(run.path / "checkpoints").newest()
        if folder is None:
            raise DataError(f"run {run.id} has no readable checkpoint in {run.path}", "train it again")
        return cls.from_folder(run.path, folder, average=average, device=device)

    @classmethod
    def from_folder(
        cls, folder: Path, weights: Path | None = None, *, average: bool = True, device: str = "cpu"
    ) -> "Engine":
        """The engine of a folder with recipe.yaml and facts.json, and of weights there or elsewhere."""
        facts = Facts.from_json(json.loads((folder / FACTS).read_text()))
        recipe = parse(read_recipe(folder / RECIPE), str(folder / RECIPE))
        family = build.family_of(recipe, facts)
        state = checkpoint.load_weights(weights or folder, family, average=average)
        return cls(family, recipe, int(state["step"]), device)

    def draw(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        *,
        batch: int = 64,
        **options: Any,
    ) -> Drawn:
        """One sample for each seed.

        Args:
            seeds: any integers.
            labels: one class a sample, `classes` for none; None: none for all.
            batch: samples drawn together; it changes no sample beyond rounding.
            options: of the family's `sample`; they override the recipe's.

        Raises:
            UsageError: an unknown option, or a label out of range.
        """
        checked = build.sample_options(self.family, {**self.options, **options})
        classes = self.facts.classes
        wanted = np.full(len(seeds), classes) if labels is None else np.asarray(labels, np.int64)
        if len(wanted) != len(seeds):
            raise UsageError(f"{len(wanted)} labels for {len(seeds)} seeds")
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() <= classes):
            names = ", ".join(f"{i}={name}" for i, name in enumerate(self.facts.class_names))
            wrong = int(wanted[(wanted < 0) | (wanted > classes)][0])
            raise UsageError(f"label {wrong} is out of range", names or "this model has no classes")
        images, nfe, start = [], 0, time.perf_counter()
        for first in range(0, len(seeds), batch):
            part = list(seeds[first : first + batch])
            rng = SampleRng(part, "sample", self.device)
            noise = rng.normal((len(part), *self.family.noise_shape))
            label = torch.from_numpy(wanted[first : first + batch]).to(self.device)
            samples = self.family.sample(noise, label, rng, **checked)
            images.append(from_x(samples.x, self.facts))
            nfe = samples.nfe
        C, H, W = self.facts.shape
        stacked = np.concatenate(images) if images else np.zeros((0, H, W, C), np.uint8)
        return Drawn(stacked, wanted, nfe, time.perf_counter() - start)

    def to_x(self, images: np.ndarray) -> Tensor:
        """Grey levels (B, H, W, C) as the family sees them, on the engine's device."""
        return to_x(images, self.facts).to(self.device)
