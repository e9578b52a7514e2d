"""Where on the clock to look while training: densities of t on (0, 1).

References:
    Scaling Rectified Flow Transformers, SD3 (Esser et al., 2024), for the logit-normal density
    https://arxiv.org/abs/2403.03206
    Improving the Training of Rectified Flows (Lee et al., 2024), for the U-shaped density of reflow
    https://arxiv.org/abs/2405.20320
"""

import math
from typing import Literal

import torch
from torch import Tensor

from genflow.maths.rng import Rng

Density = Literal["uniform", "logit_normal", "u_shaped"]
U_SHAPE_RATE = 4.0  # a of the U-shaped density, p(t) ~ exp(a t) + exp(a (1 - t))


def draw(
    density: Density, rows: int, rng: Rng, *, mean: float = 0.0, std: float = 1.0, uniform_share: float = 0.1
) -> Tensor:
    """(rows,) times in (0, 1).

    Args:
        density: uniform; the logit of a normal, which looks at the middle where the task is hardest; or U-shaped,
            which looks at both ends, where the ways of a rectified flow are not straight yet.
        rows: B.
        rng: where draws come from.
        mean: of the normal; above 0 looks at noise more.
        std: of the normal.
        uniform_share: share of a logit-normal's draws that are uniform instead: the ends matter for
            likelihood and for few steps, and the logit-normal never goes there.
    """
    t = rng.uniform((rows,))
    if density == "u_shaped":  # the inverse of F(t) = 1/2 + sinh(a (t - 1/2)) / (2 sinh(a/2))
        t = 0.5 + torch.asinh((2 * t - 1) * math.sinh(U_SHAPE_RATE / 2)) / U_SHAPE_RATE
    if density == "logit_normal":
        peaked = torch.sigmoid(mean + std * rng.normal((rows,)))
        t = torch.where(rng.uniform((rows,)) < uniform_share, t, peaked)
    return t.clamp(1e-5, 1 - 1e-5)
