"""Distributions on (0, 1) from which training times t are drawn, and the shift of times towards noise.

References:
    Scaling Rectified Flow Transformers, SD3 (Esser et al., 2024), for the logit-normal density and the shift
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
    """Draw training times (rows,) in (0, 1).

    Args:
        density: uniform; logit-normal, with most times in the middle, where the task is hardest; or U-shaped, with most
            times at both ends, where the trajectories of a rectified flow are not straight yet.
        rows: B.
        rng: source of the draws.
        mean: of the normal distribution of logit t; above 0 means more noise.
        std: standard deviation of that normal distribution.
        uniform_share: share of the logit-normal's draws that are uniform instead. The ends matter for the likelihood
            and for sampling with few steps, and the logit-normal almost never draws them.
    """
    t = rng.uniform((rows,))
    if density == "u_shaped":  # the inverse of F(t) = 1/2 + sinh(a (t - 1/2)) / (2 sinh(a/2))
        t = 0.5 + torch.asinh((2 * t - 1) * math.sinh(U_SHAPE_RATE / 2)) / U_SHAPE_RATE
    if density == "logit_normal":
        peaked = torch.sigmoid(mean + std * rng.normal((rows,)))
        t = torch.where(rng.uniform((rows,)) < uniform_share, t, peaked)
    return t.clamp(1e-5, 1 - 1e-5)


def shifted(t: Tensor, shift: float) -> Tensor:
    """Shift times t in [0, 1] towards noise, as large pictures need it: t' = s t / (1 + (s - 1) t).

    On the straight path sigma/alpha becomes s times as large. So logit t' = logit t + ln s: training times of a
    logit-normal density are shifted by a mean that is larger by ln s.
    """
    return (shift * t / (1 + (shift - 1) * t)).clamp(max=1)
