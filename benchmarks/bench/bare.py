"""A bare training loop: the net, loss, optimizer and average of `genflow train flow_matching`, and nothing else."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench.precision import autocast
from benchmarks.bench.steps import CLASSES
from genflow import build
from genflow.recipe.schema import Recipe
from genflow.specs import DataSpec
from genflow.training.ema import gamma_of
from genflow.training.optim import optimizers_of

FORGET = 0.1  # share of the labels that the net does not see


class Bare:
    """A loop over pictures in memory.

    Args:
        recipe: resolved.
        facts: of the pictures.
        pictures: (N, H, W, C) uint8.
        labels: (N,).
    """

    def __init__(self, recipe: Recipe, facts: DataSpec, pictures: np.ndarray, labels: np.ndarray) -> None:
        torch.manual_seed(0)
        self.train = recipe.train
        self.net: Any = build.family_of(recipe, facts).net
        self.net.train()
        self.pictures, self.labels = torch.from_numpy(np.array(pictures)), torch.from_numpy(np.array(labels))
        self.optimizers = list(optimizers_of(self.net, recipe.train).values())
        self.parameters = list(self.net.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.power = gamma_of(recipe.train.ema) + 1
        self.step = 0

    def steps(self, number: int) -> None:
        """Make a few steps."""
        for _ in range(number):
            x, label = self._batch()
            noise, t = torch.randn_like(x), torch.sigmoid(torch.randn(len(x)))
            label = torch.where(torch.rand(len(x)) < FORGET, CLASSES, label)
            with autocast():
                predicted = self.net(torch.lerp(x, noise, t.view(-1, 1, 1, 1)), 1000 * t, label)
            F.mse_loss(predicted.float(), noise - x).backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.train.clip, foreach=True)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self.step += 1
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, 1 - (1 - 1 / self.step) ** self.power)

    def _batch(self) -> tuple[Tensor, Tensor]:
        rows = torch.randint(0, len(self.pictures), (self.train.batch,))
        x = self.pictures[rows].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return x.mul_(2 / 256).add_(1 / 256 - 1), self.labels[rows]
