"""Classifier-free guidance as a wrapper around a net.

    prediction = p(x, t, no label) + w (p(x, t, label) - p(x, t, no label))         w = 1 is no guidance

Autoguidance replaces p(x, t, no label) by the prediction of a weaker run, so it works without labels
(families/gaussian.py).

References:
    Classifier-Free Diffusion Guidance (Ho, Salimans, 2022)                            https://arxiv.org/abs/2207.12598
    Applying Guidance in a Limited Interval (Kynkäänniemi et al., 2024)                https://arxiv.org/abs/2404.07724
    Guiding a Diffusion Model with a Bad Version of Itself (Karras et al., 2024)       https://arxiv.org/abs/2406.02507
"""

from collections.abc import Callable

import torch
from torch import Tensor

from genflow.maths.paths import Time, over
from genflow.maths.rng import Rng


class Guided:
    """A net with a fixed label and guidance weight, which counts its evaluations.

    Args:
        net: called as net(x, t, label); t (B,) on the scale of 0..1000.
        label: (B,).
        classes: the number of classes, which is also the label that means "no label".
        weight: w, the guidance scale; 1 leaves the prediction unchanged.

    Attributes:
        nfe: network evaluations per sample so far; a guided prediction counts as two.
    """

    def __init__(self, net: Callable[..., Tensor], label: Tensor, classes: int, weight: float = 1.0) -> None:
        self._net, self._label, self._weight = net, label, weight
        self._no_label = torch.full_like(label, classes)
        self.nfe = 0

    def __call__(self, x: Tensor, net_time: Time, inside: bool | Tensor = True) -> Tensor:
        """The prediction for x (B, ...) at one time or at one time per row (B,), in single precision.

        Args:
            x: (B, ...).
            net_time: on the scale of 0..1000.
            inside: whether guidance applies, for all rows or per row (B,). Where it applies to no row, one evaluation
                is enough.
        """
        t = net_time if isinstance(net_time, Tensor) else torch.full((x.shape[0],), net_time, device=x.device)
        return self.at(x, t.float(), inside)

    def at(self, x: Tensor, t: Tensor, inside: bool | Tensor = True) -> Tensor:
        """The prediction for x (B, ...) at times t (B,) on the scale of 0..1000; see `__call__`."""
        if self._weight == 1 or not (bool(inside.any()) if isinstance(inside, Tensor) else inside):
            self.nfe += 1
            return self._net(x, t, self._label).float()
        self.nfe += 2
        strong, without = self._net(
            torch.cat([x, x]), torch.cat([t, t]), torch.cat([self._label, self._no_label])
        ).float().chunk(2)
        guided = torch.lerp(without, strong, self._weight)
        return torch.where(over(inside, x).bool(), guided, strong) if isinstance(inside, Tensor) else guided


def drop_labels(label: Tensor, classes: int, share: float, rng: Rng) -> Tensor:
    """Replace a share of the labels (B,) by "no label", so that the net learns predictions with and without a label."""
    if not classes or not share:
        return label
    return label.masked_fill(rng.uniform(label.shape) < share, classes)
