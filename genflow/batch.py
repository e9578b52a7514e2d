"""The batch: the value that the data pipeline produces and families consume."""

from dataclasses import dataclass

from torch import Tensor

from genflow.text import Label


@dataclass(frozen=True)
class Batch:
    """A batch of training data.

    Args:
        x: (B, C, H, W) float32; pictures at bin centres (2k + 1)/K - 1, points divided by their scale.
        label: (B,) int64, where the number of classes itself means "no label"; or the captions, a `Text` of B rows.
        noise: (B, C, H, W), the noise from which a teacher sampled x (reflow); None: the loss draws noise.
    """

    x: Tensor
    label: Label
    noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)
