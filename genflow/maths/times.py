"""Where on the clock to look while training: densities of t on (0, 1).

References:
    Scaling Rectified Flow Transformers, SD3 (Esser et al., 2024), for the logit-normal density
    https://arxiv.org/abs/2403.03206
"""

from typing import Literal

import torch
from torch import Tensor

from genflow.maths.seeds import Rng

Density = Literal["uniform", "logit_normal"]


def draw(
    density: Density, rows: int, rng: Rng, *, mean: float = 0.0, std: float = 1.0, uniform_share: float = 0.1
) -> Tensor:
    """(rows,) times in (0, 1).

    Args:
        density: uniform, or the logit of a normal, which looks at the middle where the task is hardest.
        rows: B.
        rng: where draws come from.
        mean: of the normal; above 0 looks at noise more.
        std: of the normal.
        uniform_share: share of a logit-normal's draws that are uniform instead: the ends matter for
            likelihood and for few steps, and the logit-normal never goes there.
    """
    t = rng.uniform((rows,))
    if density == "logit_normal":
        peaked = torch.sigmoid(mean + std * rng.normal((rows,)))
        t = torch.where(rng.uniform((rows,)) < uniform_share, t, peaked)
    return t.clamp(1e-5, 1 - 1e-5)
