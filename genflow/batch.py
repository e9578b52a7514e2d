"""The one value that data gives and families take."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What data gives and a family takes.

    Args:
        x: (B, C, H, W), pictures at bin centres (2k + 1)/K - 1.
        label: (B,) int64; `classes` itself means "no label".
        noise: (B, C, H, W), the noise this x was drawn from (reflow); None: draw anew.
    """

    x: Tensor
    label: Tensor
    noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)
