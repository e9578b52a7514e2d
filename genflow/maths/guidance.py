"""Classifier-free guidance, as a wrapper around a net.

    prediction = p(x, t, nobody) + w (p(x, t, label) - p(x, t, nobody))         w = 1 is no guidance

References:
    Classifier-Free Diffusion Guidance (Ho, Salimans, 2022)   https://arxiv.org/abs/2207.12598
"""

from collections.abc import Callable

import torch
from torch import Tensor

from genflow.maths.seeds import Rng


class Guided:
    """A net with its label bound and its evaluations counted.

    Args:
        net: called as net(x, t, label); t (B,) on the scale of 0..1000.
        label: (B,).
        classes: the label that means "no label".
        weight: w, the guidance_scale; 1 leaves the prediction as it is.
    """

    def __init__(self, net: Callable[..., Tensor], label: Tensor, classes: int, weight: float = 1.0) -> None:
        self._net, self._label, self._weight = net, label, weight
        self._nobody = torch.full_like(label, classes)
        self.nfe = 0

    def __call__(self, x: Tensor, net_time: float) -> Tensor:
        """The prediction for x (B, ...) at one time, in single precision."""
        return self.at(x, torch.full((len(x),), net_time, device=x.device))

    def at(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction for x (B, ...) at times t (B,) on the scale of 0..1000."""
        if self._weight == 1:
            self.nfe += 1
            return self._net(x, t, self._label).float()
        self.nfe += 2
        with_label, without = self._net(
            torch.cat([x, x]), torch.cat([t, t]), torch.cat([self._label, self._nobody])
        ).float().chunk(2)
        return torch.lerp(without, with_label, self._weight)


def forget(label: Tensor, classes: int, share: float, rng: Rng) -> Tensor:
    """Labels (B,), a share of them replaced by "no label", so that the net learns both."""
    if not classes or not share:
        return label
    return label.masked_fill(rng.uniform(label.shape) < share, classes)
