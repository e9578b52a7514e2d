"""Classifier-free guidance as a wrapper around a net.

    prediction = p(x, t, no label) + w (p(x, t, label) - p(x, t, no label))         w = 1 is no guidance

The condition is a label or a caption: this is the only module that distinguishes them. "No label" of captions is the
empty caption, or the words of a negative prompt (genflow/text.py).

Autoguidance replaces p(x, t, no label) by the prediction of a weaker run, so it works without labels
(families/gaussian.py).

References:
    Classifier-Free Diffusion Guidance (Ho, Salimans, 2022)                            https://arxiv.org/abs/2207.12598
    Applying Guidance in a Limited Interval (Kynkäänniemi et al., 2024)                https://arxiv.org/abs/2404.07724
    Guiding a Diffusion Model with a Bad Version of Itself (Karras et al., 2024)       https://arxiv.org/abs/2406.02507
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from genflow.maths.paths import Time, over
from genflow.maths.rng import Rng
from genflow.text import Label, Text


class Guided:
    """A net with a fixed label and guidance weight, which counts its evaluations.

    Args:
        net: called as net(x, t, label); t (B,) on the scale of 0..1000.
        label: classes (B,), or captions.
        classes: the number of classes, which is also the label that means "no label".
        weight: w, the guidance scale; 1 leaves the prediction unchanged.

    Attributes:
        nfe: network evaluations per sample so far; a guided prediction counts as two.
    """

    def __init__(self, net: Callable[..., Tensor], label: Label, classes: int, weight: float = 1.0) -> None:
        self._net, self._label, self._classes, self._weight = net, label, classes, weight
        self.nfe = 0

    @cached_property
    def _both(self) -> Label:
        return cat_labels([self._label, no_label(self._label, self._classes)])

    def __call__(self, x: Tensor, net_time: Time, inside: bool | Tensor = True) -> Tensor:
        """The prediction for x (B, ...) at one time or at one time per row (B,), in single precision.

        Args:
            x: (B, ...).
            net_time: on the scale of 0..1000.
            inside: whether guidance applies, for all rows or per row (B,). Where it applies to no row, one evaluation
                is enough.
        """
        t = net_time if isinstance(net_time, Tensor) else torch.full((x.shape[0],), net_time, device=x.device)
        return self.at(x, t.float().to(x.device, non_blocking=True), inside)

    def at(self, x: Tensor, t: Tensor, inside: bool | Tensor = True) -> Tensor:
        """The prediction for x (B, ...) at times t (B,) on the scale of 0..1000; see `__call__`."""
        if self._weight == 1 or not (bool(inside.any()) if isinstance(inside, Tensor) else inside):
            self.nfe += 1
            return self._net(x, t, self._label).float()
        self.nfe += 2
        strong, without = self._net(torch.cat([x, x]), torch.cat([t, t]), self._both).float().chunk(2)
        guided = torch.lerp(without, strong, self._weight)
        return torch.where(over(inside, x).bool(), guided, strong) if isinstance(inside, Tensor) else guided


def no_label(label: Label, classes: int) -> Label:
    """The condition that means "no label" for every row: the number of classes, or the empty caption."""
    return label.unconditional() if isinstance(label, Text) else torch.full_like(label, classes)


def cat_labels(parts: Sequence[Label]) -> Label:
    """The conditions of all parts as one; all parts are labels, or all are captions."""
    texts = [part for part in parts if isinstance(part, Text)]
    return Text.cat(texts) if texts else torch.cat([part for part in parts if isinstance(part, Tensor)])


def class_numbers(label: Label, classes: int) -> Tensor:
    """The class of each row (B,); captions have no class, so each is `classes`."""
    return torch.full((len(label),), classes, device=label.device) if isinstance(label, Text) else label


def drop_labels(label: Label, classes: int, share: float, rng: Rng) -> Label:
    """Replace a share of the conditions by "no label", so that the net learns predictions with and without them."""
    if not share:
        return label
    if isinstance(label, Text):
        return label.dropped(rng.uniform((len(label),)) < share)
    return label.masked_fill(rng.uniform(label.shape) < share, classes) if classes else label
