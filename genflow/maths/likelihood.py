"""Likelihoods, in nats of the discrete grey levels, and bits per dimension.

    bits/dim = -nats / (D ln 2)

A density p(x) of dequantized data, x = (2 (k + u))/K - 1 with u ~ U[0, 1), bounds the probability of the
levels: log P(k) >= E_u log p(x) + D log(2/K). K comes from the data and is never assumed to be 256.

References:
    A note on the evaluation of generative models (Theis et al., 2016)          https://arxiv.org/abs/1511.01844
    FFJORD (Grathwohl et al., 2019), for the change of density along an ODE     https://arxiv.org/abs/1810.01367
    Variational Diffusion Models (Kingma et al., 2021), for the bound in SNR    https://arxiv.org/abs/2107.00630
    PixelCNN++ (Salimans et al., 2017), for discretized decoders                https://arxiv.org/abs/1701.05517
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genflow.facts import Facts
from genflow.maths.seeds import Rng


def bits_per_dim(nats: float, dims: int) -> float:
    """Nats of a whole sample as bits a number."""
    return -nats / (dims * math.log(2))


def dequantize(x: Tensor, facts: Facts, rng: Rng) -> Tensor:
    """Spread each grey level over its bin of width 2/K; points stay as they are."""
    if facts.levels is None:
        return x
    return x + (rng.uniform(x.shape) - 0.5) * (2 / facts.levels)


def discrete_nats(log_density: Tensor, facts: Facts) -> Tensor:
    """log p(x) of dequantized data as a bound on log P of its levels; for points, of the raw coordinates."""
    if facts.levels is None:
        return log_density - facts.dims * math.log(facts.scale)
    return log_density + facts.dims * math.log(2 / facts.levels)


def standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) of each row, (B,)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)


def discretized(log_cdf: Callable[[Tensor], Tensor], x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """log of the mass that a symmetric location-scale density puts into x's bin; the end bins reach to infinity.

        log(F(b) - F(a)) = log F(b) + log(1 - F(a)/F(b))

    with both edges on the left of the mean, where log F is exact however far out they lie. (A floor under the
    mass would be no probability: a bound with it is no bound, and a far outlier has no gradient.)

    Args:
        log_cdf: log of the standard density's distribution function, such as `F.logsigmoid`.
        x: bin centres, (B, ...).
        mean: the density's location.
        log_scale: log of its scale.
        levels: K; a bin is 2/K wide.
    """
    inverse, off, half = torch.exp(-log_scale), x - mean, 1 / levels
    a, b = (-off.abs() - half) * inverse, (-off.abs() + half) * inverse
    inner = log_cdf(b) + torch.log1p(-torch.exp(log_cdf(a) - log_cdf(b)))
    edge = 1 - 1.5 / levels
    lowest, highest = log_cdf((off + half) * inverse), log_cdf((half - off) * inverse)
    return torch.where(x > edge, highest, torch.where(x < -edge, lowest, inner))


def ode_log_density(
    velocity: Callable[[Tensor, float], Tensor],
    x: Tensor,
    rng: Rng,
    *,
    steps: int = 20,
    probes: int = 1,
) -> tuple[Tensor, Tensor, int]:
    """log p(x) under the flow dy/du = velocity(y, u) that carries data (u = 0) to N(0, I) (u = 1).

        log p(x) = log N(y_1; 0, I) + integral_0^1 div velocity du

    by the midpoint rule with fixed steps. The divergence is exact for D <= 8, and otherwise Hutchinson's
    estimate with Rademacher probes that stay fixed along the whole path, so that the integrand is smooth.

    Args:
        velocity: on the straight path.
        x: (B, C, H, W).
        rng: draws the probes.
        steps: midpoint steps, two evaluations each.
        probes: trajectories of the divergence estimate; their spread gives the standard error.

    Returns:
        log p (B,), its standard error (B,), and network evaluations a sample.
    """
    grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()
    exact = math.prod(x.shape[1:]) <= 8
    signs = [] if exact else [(rng.uniform(x.shape) < 0.5).to(x.dtype) * 2 - 1 for _ in range(probes)]
    integrals = [x.new_zeros(len(x), dtype=torch.float64) for _ in range(1 if exact else probes)]
    y, nfe = x, 0
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        with torch.no_grad():
            # the first slope is taken just inside: the straight path's velocity has no value at u = 0
            halfway = y + (b - a) / 2 * velocity(y, max(a, 1e-3))
        v, divergences = _with_divergence(velocity, halfway, (a + b) / 2, signs)
        y = y + (b - a) * v
        for total, divergence in zip(integrals, divergences, strict=True):
            total += (b - a) * divergence.double()
        nfe += 2
    stacked = torch.stack(integrals)
    stderr = stacked.std(0) / len(integrals) ** 0.5 if len(integrals) > 1 else torch.zeros_like(stacked[0])
    return standard_normal(y.double()) + stacked.mean(0), stderr, nfe


def _with_divergence(
    velocity: Callable[[Tensor, float], Tensor], y: Tensor, u: float, signs: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The velocity at y, and its divergence: exact if there are no probes, else one estimate a probe."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        v = velocity(y, u)
        if signs:
            grads = [torch.autograd.grad((v * e).sum(), y, retain_graph=True)[0] for e in signs]
            return v.detach(), [(g * e).flatten(1).sum(1) for g, e in zip(grads, signs, strict=True)]
        flat = v.flatten(1)
        trace = torch.zeros_like(flat[:, 0])
        for i in range(flat.shape[1]):
            trace = trace + torch.autograd.grad(flat[:, i].sum(), y, retain_graph=True)[0].flatten(1)[:, i]
        return v.detach(), [trace.detach()]
