"""Averaged weights: a power-function average, which suits both short and long runs.

    beta_n = (1 - 1/n)^(gamma + 1),   average_n = beta_n average_{n-1} + (1 - beta_n) weights_n

Its width is a constant share sigma_rel of the training so far. With a fixed beta = 0.9999 the average would still be
mostly the initial weights after a thousand steps.

References:
    Analyzing and Improving the Training Dynamics of Diffusion Models, EDM2 (Karras et al., 2024), section 3.1
    https://arxiv.org/abs/2312.02696
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genflow.families.base import Family
from genflow.training.fsdp import shard_like


def gamma_of(sigma_rel: float) -> float:
    """The exponent gamma whose average has relative width sigma_rel (EDM2, equation 126).

        sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))

    Raises:
        ValueError: sigma_rel is not below 1/sqrt(12) = 0.2887, the width of a plain mean.
    """
    width = sigma_rel**-2
    roots = np.roots([1, 7, 16 - width, 12 - width])
    gamma = float(roots.real.max())
    if gamma <= 0:
        raise ValueError(f"sigma_rel = {sigma_rel} is too wide; it must be below 0.2887")
    return gamma


class Ema:
    """A power-function average of a module's parameters.

    Args:
        module: its trainable parameters are averaged.
        sigma_rel: the width, as a share of training.
    """

    def __init__(self, module: nn.Module, sigma_rel: float) -> None:
        self.gamma = gamma_of(sigma_rel)
        self._source = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._average = [p.detach().clone() for _, p in self._source]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after step number `step` (1, 2, ...) to the average."""
        beta = (1 - 1 / step) ** (self.gamma + 1)
        torch._foreach_lerp_(self._average, [p.detach() for _, p in self._source], 1 - beta)

    def state(self) -> dict[str, Tensor]:
        """The averaged parameters by name."""
        return {name: average for (name, _), average in zip(self._source, self._average, strict=True)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned."""
        for (name, _), average in zip(self._source, self._average, strict=True):
            average.copy_(shard_like(state[name], average))


def with_average(family: Family, average: dict[str, Tensor], use: Callable[[], Any]) -> Any:
    """Call `use` while the family has the averaged weights, in eval mode; then restore the raw weights."""
    raw = {name: p.detach().clone() for name, p in family.named_parameters() if name in average}
    family.load_state_dict(average, strict=False)
    family.eval()
    try:
        return use()
    finally:
        family.load_state_dict(raw, strict=False)
        family.train()
