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

from genflow.maths.paths import Path, Time, along
from genflow.maths.rng import Rng
from genflow.specs import DataSpec

STEP_GROWTH = 4.0  # of the ODE's steps from data to noise: the last is e^4 times as long as the first
FIRST_LEVEL = 0.35  # of the variational bound, as sigma/alpha in bins of the grey levels; from 0.25 to 0.5 it is flat


def bits_per_dim(nats: float, dims: int) -> float:
    """Nats of a whole sample as bits a number."""
    return -nats / (dims * math.log(2))


def dequantize(x: Tensor, facts: DataSpec, rng: Rng) -> Tensor:
    """Spread each grey level over its bin of width 2/K; points stay as they are."""
    if facts.levels is None:
        return x
    return x + (rng.uniform(x.shape) - 0.5) * (2 / facts.levels)


def discrete_nats(log_density: Tensor, facts: DataSpec) -> Tensor:
    """log p(x) of dequantized data as a bound on log P of its levels; for points, of the raw coordinates."""
    if facts.levels is None:
        return log_density - facts.dims * math.log(facts.scale)
    return log_density + facts.dims * math.log(2 / facts.levels)


def standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) of each row, (B,)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)


def bound_from_draws(log_weights: Tensor, *, iwae: bool) -> tuple[Tensor, Tensor]:
    """A bound from k draws of log w, (k, B): their mean (ELBO), or the log of the mean of w (IWAE); and its error.

    The standard error is the jackknife's, which leaves out each draw in turn. For a mean it is the usual
    std / sqrt(k); for IWAE it tells when one draw outweighs the others. 0 for k = 1, where nothing tells.
    """
    k = len(log_weights)
    if k == 1:
        return log_weights[0], torch.zeros_like(log_weights[0])
    if not iwae:
        return log_weights.mean(0), log_weights.std(0) / math.sqrt(k)
    total = log_weights.logsumexp(0)
    share = (log_weights - total).exp().clamp(max=1 - 1e-12)
    without = total + torch.log1p(-share) - math.log(k - 1)  # each draw left out
    return total - math.log(k), without.std(0, correction=0) * math.sqrt(k - 1)


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


def variational_bound(
    denoise: Callable[[Tensor, Time], Tensor], path: Path, x: Tensor, facts: DataSpec, rng: Rng, strata: int = 40
) -> tuple[Tensor, Tensor]:
    """A lower bound on log P(x) of a denoiser on any Gaussian path, with as many noise levels as there are numbers.

        -log P(x) <= KL(q(x_1 | x) || prior) + integral r^-2 ||x - x_net(x_r)||^2 d log r - log P(x | x_net(x_first))

    r = sigma/alpha falls from 80, or where the path begins, to the first level. (T discrete levels with the
    posterior's variance bound the integral by its upper sum: half a nat a number where the ratio r doubles from one
    level to the next.) The integral is estimated without bias, one draw in each stratum, even in log(1 + 1/r). The
    prior is N(0, sigma^2), whose KL is x^2/(2 r^2); the decoder a Gaussian of standard deviation r about the net's
    guess, for pictures its mass in the bin.

    The bound holds from any first level on. For pictures it is where r is a third of a bin: below, the grey level is
    known, and a net pays for each of its errors what a better density would not gain.

    Args:
        denoise: of maths.samplers; called with a time a row.
        path: whose times it knows.
        x: (B, C, H, W).
        facts: of the data.
        rng: draws noise and levels.
        strata: draws a row, besides two of the decoder.

    Returns:
        nats (B,) and their standard error (B,), seen from the difference between neighbouring strata.

    References:
        Variational Diffusion Models (Kingma et al., 2021), equations 14 to 18   https://arxiv.org/abs/2107.00630
    """

    def ratio(t: float) -> float:
        return path.sigma(t) / path.alpha(t) if path.alpha(t) else math.inf

    def error_at(r: Tensor) -> Tensor:
        """x less the guess of it at sigma/alpha = r (B,)."""
        t = torch.tensor([path.time(each / (1 + each)) for each in r.tolist()], dtype=torch.float64, device=x.device)
        x_t = along(path.alpha, t, x) * x + along(path.sigma, t, x) * rng.normal(x.shape)
        return x.double() - denoise(x_t, t).double()

    lowest = max(ratio(path.cleanest), 0.0 if facts.levels is None else FIRST_LEVEL * 2 / facts.levels)
    first, last = torch.tensor(lowest, dtype=torch.float64, device=x.device), min(80.0, ratio(1.0))
    cuts = torch.linspace(math.log1p(1 / last), math.log1p(1 / lowest), strata + 1, dtype=torch.float64).tolist()
    terms = []
    for a, b in zip(cuts[:-1], cuts[1:], strict=True):
        r = 1 / torch.expm1(a + (b - a) * rng.uniform((len(x),)).double())
        terms.append((b - a) * (1 + r) / r.square() * error_at(r).square().flatten(1).sum(1))  # d log r = (1 + r) d cut
    stacked = torch.stack(terms)

    prior = x.double().square().flatten(1).sum(1) / (2 * last**2)
    decoders = torch.stack([_decoder(x.double(), error_at(first.expand(len(x))), first, facts) for _ in range(2)])
    # neighbouring strata stand in for a repeated draw: half their squared difference, at either side
    spread = torch.cat([stacked[1:2], stacked, stacked[-2:-1]]).diff(dim=0).square().sum(0).div(2)
    spread = spread + decoders.diff(dim=0).square().sum(0) / 4
    return decoders.mean(0) - prior - stacked.sum(0), spread.sqrt()


def _decoder(x: Tensor, off: Tensor, first: Tensor, facts: DataSpec) -> Tensor:
    """log of a Gaussian of standard deviation `first` about x - off: its mass in x's bins for pictures, (B,)."""
    if facts.levels is not None:
        return discretized(torch.special.log_ndtr, x, x - off, first.log(), facts.levels).flatten(1).sum(1)
    density = -0.5 * (off / first).square() - first.log() - 0.5 * math.log(2 * math.pi)
    return discrete_nats(density.flatten(1).sum(1), facts)


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

    by the midpoint rule on steps that grow from the data on, u = (e^(4 z) - 1)/(e^4 - 1) with z even: a flow turns
    fastest where the noise is as narrow as the data, and even steps there find a density that is too good. The walk is
    made twice, with half as many steps too; the method's order 2 turns their difference into an estimate of the error,
    which is taken off and given as the error that is left.

    The divergence is exact for D <= 8, and otherwise Hutchinson's estimate with Rademacher probes that stay fixed
    along both walks, so that the integrand is smooth.

    Args:
        velocity: on the straight path.
        x: (B, C, H, W).
        rng: draws the probes.
        steps: midpoint steps, two evaluations each, at least 2.
        probes: trajectories of the divergence estimate; their spread gives the standard error.

    Returns:
        log p (B,), its standard error (B,) from solver and probes together, and network evaluations a sample.
    """
    signs: list[Tensor] = []
    if math.prod(x.shape[1:]) > 8:
        signs = [(rng.uniform(x.shape) < 0.5).to(x.dtype) * 2 - 1 for _ in range(probes)]
    half = steps // 2
    fine, coarse = _integrate(velocity, x, steps, signs), _integrate(velocity, x, half, signs)  # (probes or 1, B)
    left = (fine - coarse) / ((steps / half) ** 2 - 1)
    values = fine + left
    spread = values.std(0) / len(values) ** 0.5 if len(values) > 1 else torch.zeros_like(values[0])
    return values.mean(0), torch.hypot(spread, left.mean(0)), 2 * (steps + half)


def _integrate(velocity: Callable[[Tensor, float], Tensor], x: Tensor, steps: int, signs: Sequence[Tensor]) -> Tensor:
    """log N(y_1; 0, I) + the integral of the divergence, for each probe: (probes or 1, B)."""
    z = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    grid = (torch.expm1(STEP_GROWTH * z) / math.expm1(STEP_GROWTH)).tolist()
    total, y = torch.zeros(max(1, len(signs)), len(x), dtype=torch.float64, device=x.device), x
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        with torch.no_grad():
            # the first slope is taken just inside: the straight path's velocity has no value at u = 0
            halfway = y + (b - a) / 2 * velocity(y, max(a, min(1e-3, (b - a) / 2)))
        v, divergences = _with_divergence(velocity, halfway, (a + b) / 2, signs)
        y = y + (b - a) * v
        total += (b - a) * torch.stack(divergences).double()
    return standard_normal(y.double()) + total


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
