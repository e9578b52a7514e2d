"""Likelihoods in nats of the discrete grey levels, and bits per dimension.

    bits/dim = -nats / (D ln 2)

A density p(x) of dequantized data, x = (2 (k + u))/K - 1 with u ~ U[0, 1), bounds the probability of the
levels: log P(k) >= E_u log p(x) + D log(2/K). K comes from the data; it is not assumed to be 256.

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
from genflow.maths.wide import wide, wide_type
from genflow.specs import DataSpec

# Growth of the ODE steps from data to noise: the last step is e^4 times as long as the first.
STEP_GROWTH = 4.0
# The first noise level of the variational bound: sigma/alpha as a multiple of the width of a grey level's bin. The
# bound is flat in this number from 0.25 to 0.5.
FIRST_LEVEL = 0.35


def bits_per_dim(nats: float, dims: int) -> float:
    """Bits per dimension, -nats / (D ln 2), from the log-likelihood of a whole sample.

    Args:
        nats: log-likelihood of a sample.
        dims: D, the numbers in a sample.
    """
    return -nats / (dims * math.log(2))


def dequantize(x: Tensor, facts: DataSpec, rng: Rng) -> Tensor:
    """Spread each grey level uniformly over its bin of width 2/K; points stay unchanged. x is (B, C, H, W)."""
    if facts.levels is None:
        return x
    return x + (rng.uniform(x.shape) - 0.5) * (2 / facts.levels)


def discrete_nats(log_density: Tensor, facts: DataSpec) -> Tensor:
    """Convert log p(x) of dequantized data (B,) to a bound on log P of its levels: log p(x) + D log(2/K).

    For points the result is the log-density in the raw coordinates: log p(x) - D log scale.
    """
    if facts.levels is None:
        return log_density - facts.dims * math.log(facts.scale)
    return log_density + facts.dims * math.log(2 / facts.levels)


def standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) of each row, (B,)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)


def bound_from_draws(log_weights: Tensor, *, iwae: bool) -> tuple[Tensor, Tensor]:
    """The ELBO or the IWAE bound from k draws of the log importance weights, and its standard error.

        ELBO = 1/k sum_i log w_i,    IWAE = log 1/k sum_i w_i

    The standard error is the jackknife estimate, which leaves out each draw in turn. For the ELBO it is the usual
    std / sqrt(k). For IWAE it grows when one draw outweighs the others. For k = 1 it cannot be estimated and is 0.

    Args:
        log_weights: (k, B) draws of log w.
        iwae: the IWAE bound (Burda et al., 2016, equation 8) instead of the ELBO.

    Returns:
        The bound (B,) and its standard error (B,), in nats.
    """
    k = len(log_weights)
    if k == 1:
        return log_weights[0], torch.zeros_like(log_weights[0])
    if not iwae:
        return log_weights.mean(0), log_weights.std(0) / math.sqrt(k)
    total = log_weights.logsumexp(0)
    share = (log_weights - total).exp().clamp(max=1 - 1e-12)
    without = total + torch.log1p(-share) - math.log(k - 1)  # the bound without each draw
    return total - math.log(k), without.std(0, correction=0) * math.sqrt(k - 1)


def discretized(log_cdf: Callable[[Tensor], Tensor], x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Log of the mass that a symmetric location-scale density has in x's bin; the outer bins extend to infinity.

        log(F(b) - F(a)) = log F(b) + log(1 - F(a)/F(b))

    Both edges are mirrored to the left of the mean, where log F is exact at any distance. The mass has no lower limit:
    with one the masses would not sum to 1, the result would not be a bound, and far outliers would have no gradient.

    Args:
        log_cdf: log of the cumulative distribution function of the standard density, such as `F.logsigmoid`.
        x: bin centres, (B, ...).
        mean: location of the density, broadcast to x.
        log_scale: log of its scale, broadcast to x.
        levels: K; a bin is 2/K wide.

    Returns:
        log-probability in nats, (B, ...).

    References:
        PixelCNN++ (Salimans et al., 2017), equation 2   https://arxiv.org/abs/1701.05517
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
    """The variational lower bound on log P(x) in continuous time, of a denoiser on any Gaussian path.

        -log P(x) <= KL(q(x_1 | x) || prior) + integral r^-2 ||x - x_net(x_r)||^2 d log r - log P(x | x_net(x_first))

    r = sigma/alpha falls from 80, or from the path's largest ratio, to the first level. The integral is estimated
    without bias by one draw in each stratum; the strata are even in log(1 + 1/r). The prior is N(0, sigma^2), whose KL
    is x^2/(2 r^2). The decoder is a Gaussian of standard deviation r around the denoised x; for pictures its mass in
    the bin counts.

    T discrete levels with the posterior's variance would replace the integral by its upper sum. That is looser by half
    a nat per number where the ratio r doubles from one level to the next.

    The bound holds for any first level. For pictures the first level is where r is about a third of a bin. Below it
    the grey level is known: errors of the net still cost nats there, and a better density would gain nothing.

    Args:
        denoise: as in maths.samplers; called with one time per row (B,).
        path: the path whose times `denoise` expects.
        x: (B, C, H, W).
        facts: of the data.
        rng: draws noise and noise levels.
        strata: denoiser evaluations per row, in addition to two for the decoder.

    Returns:
        The bound in nats (B,) and its standard error (B,), estimated from the difference between neighbouring strata.

    References:
        Variational Diffusion Models (Kingma et al., 2021), equations 14 to 18   https://arxiv.org/abs/2107.00630
    """

    def ratio(t: float) -> float:
        return path.sigma(t) / path.alpha(t) if path.alpha(t) else math.inf

    def error_at(r: Tensor) -> Tensor:
        """x minus its denoised estimate at sigma/alpha = r (B,)."""
        t = torch.tensor([path.time(each / (1 + each)) for each in r.tolist()], dtype=torch.float64)
        x_t = along(path.alpha, t, x) * x + along(path.sigma, t, x) * rng.normal(x.shape)
        return wide(x) - wide(denoise(x_t, t))

    lowest = max(ratio(path.cleanest), 0.0 if facts.levels is None else FIRST_LEVEL * 2 / facts.levels)
    first, last = torch.tensor(lowest, dtype=torch.float64), min(80.0, ratio(1.0))
    cuts = torch.linspace(math.log1p(1 / last), math.log1p(1 / lowest), strata + 1, dtype=torch.float64).tolist()
    terms, draws = [], rng.on("cpu")
    for a, b in zip(cuts[:-1], cuts[1:], strict=True):
        r = 1 / torch.expm1(a + (b - a) * draws.uniform((len(x),)).double())
        scale = (b - a) * (1 + r) / r.square()  # d log r = (1 + r) d cut
        scale = scale.to(wide_type(x.device)).to(x.device, non_blocking=True)
        terms.append(scale * error_at(r).square().flatten(1).sum(1))
    stacked = torch.stack(terms)

    prior = wide(x).square().flatten(1).sum(1) / (2 * last**2)
    at_first, on_device = first.expand(len(x)), first.to(wide_type(x.device)).to(x.device, non_blocking=True)
    decoders = torch.stack(
        [_decoder(wide(x), error_at(at_first), on_device, facts) for _ in range(2)]
    )
    # Each stratum has one draw. Half the squared differences from its neighbours estimate its variance.
    spread = torch.cat([stacked[1:2], stacked, stacked[-2:-1]]).diff(dim=0).square().sum(0).div(2)
    spread = spread + decoders.diff(dim=0).square().sum(0) / 4
    return decoders.mean(0) - prior - stacked.sum(0), spread.sqrt()


def _decoder(x: Tensor, off: Tensor, first: Tensor, facts: DataSpec) -> Tensor:
    """Log-density of x under N(x - off, first^2), (B,); for pictures the log of its mass in x's bins."""
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
    """log p(x) under the ODE dy/du = velocity(y, u), which transports data (u = 0) to N(0, I) (u = 1).

        log p(x) = log N(y_1; 0, I) + integral_0^1 div velocity du

    The solver is the midpoint rule. Its steps grow from data to noise, u = (e^(4 z) - 1)/(e^4 - 1) with z even: the
    velocity changes fastest where the noise is as narrow as the data, and even steps there overestimate the density.
    The ODE is solved twice, with `steps` and with half as many steps. Because the method has order 2, the difference
    gives an estimate of the error (Richardson extrapolation). The estimate is subtracted, and is also reported as the
    remaining error.

    The divergence is exact for D <= 8. Otherwise it is Hutchinson's estimate with Rademacher probes, which stay fixed
    during both solves so that the integrand is smooth.

    Args:
        velocity: velocity(y, u) -> dy/du on the straight path, for y (B, C, H, W).
        x: (B, C, H, W).
        rng: draws the probes.
        steps: midpoint steps, at least 2; each takes two evaluations.
        probes: probes of the divergence estimate; their spread contributes to the standard error.

    Returns:
        log p in nats (B,), its standard error (B,) from solver and probes together, and network evaluations per sample.

    References:
        FFJORD (Grathwohl et al., 2019)   https://arxiv.org/abs/1810.01367
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
    """log N(y_1; 0, I) plus the integral of the divergence, per probe: (probes or 1, B)."""
    z = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    grid = (torch.expm1(STEP_GROWTH * z) / math.expm1(STEP_GROWTH)).tolist()
    total, y = torch.zeros(max(1, len(signs)), len(x), dtype=wide_type(x.device), device=x.device), x
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        with torch.no_grad():
            # The first slope is evaluated at u > 0, because the straight path's velocity is undefined at u = 0.
            halfway = y + (b - a) / 2 * velocity(y, max(a, min(1e-3, (b - a) / 2)))
        v, divergences = _with_divergence(velocity, halfway, (a + b) / 2, signs)
        y = y + (b - a) * v
        total += (b - a) * wide(torch.stack(divergences))
    return standard_normal(wide(y)) + total


def _with_divergence(
    velocity: Callable[[Tensor, float], Tensor], y: Tensor, u: float, signs: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The velocity at y, and its divergence (B,): exact if there are no probes, else one estimate per probe."""
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
