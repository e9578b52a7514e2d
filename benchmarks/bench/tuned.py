"""The loops of `peers.py` with what genflow has, as trainings to a stated quality.

They train the network that genflow names `unet2d` with classes, in the number format of `precision.py`, with genflow's
batch size and a fused optimizer. The learning rate is 1e-3, rises over 50 steps and falls to 0 with the budget. The
average has a warm-up.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench.examples import EVALUATIONS, copies, ddim, integral
from benchmarks.bench.peers import Diffusers, Lucidrains, TorchCfm

LR, WARM_UP = 1e-3, 50


class _Rates:
    """A rise over the first steps, and a fall to 0 along half a cosine with the used share of the budget."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer, self._made, self.position = optimizer, 0, 0.0
        self.step()

    def step(self) -> None:
        self._made += 1
        rate = LR * min(1.0, self._made / WARM_UP) * (1 + math.cos(math.pi * min(1.0, self.position))) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = rate


class Tuned:
    """A loop of `peers.py` with what genflow has.

    Args:
        loop: the loop's class.
        options: of genflow's `unet2d`.
        batch: rows of a step.
    """

    evaluations = EVALUATIONS

    def __init__(
        self, loop: Any, options: dict[str, Any], shape: tuple[int, int, int], batch: int, classes: int, seed: int
    ) -> None:
        self.batch, self._made = batch, 0
        self._loop: Any = loop(options, shape, batch, classes, seed)
        self.net: nn.Module = self._loop.model
        self._rates = _Rates(self._loop.optimizer)
        if isinstance(self._loop, Lucidrains):
            self._loop.diffusion.sampling_timesteps, self._loop.diffusion.is_ddim_sampling = self.evaluations, True
        else:
            self._loop.rates = self._rates

    def step(self, x: Tensor, labels: Tensor, position: float) -> None:
        self._rates.position, self._made = position, self._made + 1
        if isinstance(self._loop, TorchCfm):
            self._loop.decay = min(0.9999, (1 + self._made) / (10 + self._made))
        self._loop.step(x, labels)
        if isinstance(self._loop, Lucidrains):
            self._rates.step()

    def weights(self) -> dict[str, Tensor]:
        match self._loop:
            case Diffusers():
                names = [name for name, _ in self.net.named_parameters()]
                return copies(dict(zip(names, self._loop.average.shadow_params, strict=True)))
            case TorchCfm():
                return copies(self._loop.average.state_dict())
            case _:
                return copies(self._loop.average.ema_model.model.state_dict())

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        net: Any = self.net
        match self._loop:
            case Diffusers():
                return ddim(
                    lambda x, t: net(x, t, class_labels=labels).sample.float(), self._loop.levels, noise,
                    self.evaluations,
                )  # fmt: skip
            case TorchCfm():
                return integral(
                    lambda x, t: net(x, 1000 * t, class_labels=labels).sample.float(), noise, self.evaluations
                )
            case _:
                net.labels = labels
                drawn: Tensor = self._loop.diffusion.sample(batch_size=len(noise))
                return drawn.clone()
