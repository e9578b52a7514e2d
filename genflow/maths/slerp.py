"""Spherical interpolation between Gaussian codes, which keeps the length typical of such codes.

    z(s) = |z(s)| (sin((1 - s) w) a/|a| + sin(s w) b/|b|) / sin w,    |z(s)| = (1 - s) |a| + s |b|

w is the angle between a and b. Nearly all codes of a high-dimensional Gaussian have about the same length. A straight
line between two of them passes through shorter codes, whose samples have too little detail.

References:
    Animating rotation with quaternion curves (Shoemake, 1985)
    Sampling Generative Networks (White, 2016), for generative models   https://arxiv.org/abs/1609.04468
"""

import torch
from torch import Tensor

from genflow.maths.wide import wide, wide_type


def slerp(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """The codes (B, ...) at fractions s (B,) of the ways from a (B, ...) to b (B, ...): a at s = 0, b at s = 1."""
    first, last = wide(a.flatten(1)), wide(b.flatten(1))
    s = s.to(wide_type(a.device))[:, None].to(a.device)
    lengths = [end.norm(dim=1, keepdim=True).clamp(min=1e-12) for end in (first, last)]
    cosine = (first * last).sum(1, keepdim=True) / (lengths[0] * lengths[1])
    w = cosine.clamp(-1, 1).arccos()
    turn = ((1 - s) * w).sin() * first / lengths[0] + (s * w).sin() * last / lengths[1]
    round_ = turn / w.sin().clamp(min=1e-12) * ((1 - s) * lengths[0] + s * lengths[1])
    straight = (1 - s) * first + s * last  # used where the angle is 0 or 180 degrees, or a code is 0
    turns = (w.sin() > 1e-3) & (torch.minimum(*lengths) > 1e-6)
    return torch.where(turns, round_, straight).to(a.dtype).unflatten(1, a.shape[1:])
