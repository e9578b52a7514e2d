"""Invertible maps of one number for normalizing flows: an affine map, then a monotonic rational-quadratic spline.

    y = (x - mu) exp(-s),    z = spline(y)

The spline has K bins in [-BOUND, BOUND] and is the identity outside. In bin k, of width w and height h with slopes
d_k, d_{k+1} at its ends, and xi = (y - y_k)/w, r = h/w (equations 4 and 5 of the reference):

    z     = z_k + h (r xi^2 + d_k xi (1 - xi)) / q,     q = r + (d_{k+1} + d_k - 2 r) xi (1 - xi)
    dz/dy = r^2 (d_{k+1} xi^2 + 2 r xi (1 - xi) + d_k (1 - xi)^2) / q^2

References:
    Neural Spline Flows (Durkan et al., 2019)   https://arxiv.org/abs/1906.04032
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BOUND = 4.0
MIN_BIN_SHARE = 1e-3  # the smallest size of a bin, as a share of the whole range
MIN_SLOPE = 1e-3  # the smallest slope at a knot
MAX_LOG_SCALE = 8.0  # the largest |s|


def parameter_count(bins: int) -> int:
    """Parameters per number: mu and s; with K > 0 bins also K widths, K heights and K - 1 slopes."""
    return 2 + (3 * bins - 1 if bins else 0)


def transform(x: Tensor, params: Tensor, bins: int, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Apply the map, or its inverse, to each number; all parameters 0 give the identity.

    Args:
        x: (...); z if `inverse`.
        params: (..., parameter_count(bins)), unconstrained.
        bins: K; 0: only the affine map.
        inverse: map from z to x.

    Returns:
        z or x (...), and log |dz/dx| or log |dx/dz| (...).
    """
    mu, s = params[..., 0], MAX_LOG_SCALE * torch.tanh(params[..., 1] / MAX_LOG_SCALE)
    if inverse:
        y, slope = _spline(x, params[..., 2:], bins, inverse=True) if bins else (x, torch.zeros_like(x))
        return y * s.exp() + mu, slope + s
    y = (x - mu) * torch.exp(-s)
    if not bins:
        return y, -s
    z, slope = _spline(y, params[..., 2:], bins, inverse=False)
    return z, slope - s


def _knots(free: Tensor) -> tuple[Tensor, Tensor]:
    """The sizes of the bins (..., K), positive with sum 2 BOUND, and their knots (..., K + 1)."""
    bins = free.shape[-1]
    sizes = 2 * BOUND * (MIN_BIN_SHARE + (1 - MIN_BIN_SHARE * bins) * free.softmax(-1))
    inner = sizes[..., :-1].cumsum(-1) - BOUND
    edge = torch.full_like(inner[..., :1], BOUND) if bins > 1 else torch.full_like(free, BOUND)
    knots = torch.cat([-edge, inner, edge], -1)
    return knots.diff(dim=-1), knots


def _spline(x: Tensor, params: Tensor, bins: int, *, inverse: bool) -> tuple[Tensor, Tensor]:
    widths, xs = _knots(params[..., :bins])
    heights, ys = _knots(params[..., bins : 2 * bins])
    one = math.log(math.expm1(1 - MIN_SLOPE))  # softplus(one) + MIN_SLOPE = 1
    slopes = F.pad(F.softplus(params[..., 2 * bins :] + one) + MIN_SLOPE, (1, 1), value=1.0)
    inside = x.abs() < BOUND
    at = torch.where(inside, x, 0.0)
    k = (at[..., None] >= (ys if inverse else xs)[..., 1:-1]).sum(-1, keepdim=True)

    def pick(values: Tensor) -> Tensor:
        return values.gather(-1, k)[..., 0]

    w, x_k, h, y_k = pick(widths), pick(xs), pick(heights), pick(ys)
    d, d_next, r = pick(slopes), pick(slopes[..., 1:]), h / w
    bend = d_next + d - 2 * r
    if inverse:  # the root of a xi^2 + b xi + c = 0 in [0, 1], equations 6 to 8
        up = at - y_k
        a, b, c = h * (r - d) + up * bend, h * d - up * bend, -r * up
        xi = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
    else:
        xi = (at - x_k) / w
    both = xi * (1 - xi)
    q = r + bend * both
    slope = 2 * r.log() + (d_next * xi.square() + 2 * r * both + d * (1 - xi).square()).log() - 2 * q.log()
    y = x_k + w * xi if inverse else y_k + h * (r * xi.square() + d * both) / q
    return torch.where(inside, y, x), torch.where(inside, -slope if inverse else slope, 0.0)
