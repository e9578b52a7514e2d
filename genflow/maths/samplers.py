"""Samplers: pure functions that integrate from noise to data along any Gaussian path.

    sampler(denoise, path, x, times, rng, **options) -> x at times[-1]

A sampler uses a model only through `denoise(x_t, t) -> E[x_0 | x_t]`. So every sampler works on every checkpoint of a
Gaussian path, whatever its net predicts. x is (B, C, H, W). Times decrease from at most 1 to 0 (`paths.spaced_times`).
Most ODE solvers work on the straight path (see `paths`):

    dy/du = (y - x_0) / u,   y = x_t / (alpha + sigma),   u = sigma / (alpha + sigma)

so `euler` equals DDIM with eta = 0 on every path, to rounding. `edm_heun` works in EDM's variables,

    dz/ds = (z - x_0) / s,   z = x_t / alpha,             s = sigma / alpha

and `dpmpp_2m` integrates over lambda = log(alpha/sigma).

References:
    Denoising Diffusion Implicit Models (Song et al., 2021), equation 12       https://arxiv.org/abs/2010.02502
    Elucidating the Design Space (Karras et al., 2022), algorithm 1            https://arxiv.org/abs/2206.00364
    DPM-Solver++ (Lu et al., 2022), algorithm 2                                https://arxiv.org/abs/2211.01095
    A family of embedded Runge-Kutta formulae (Dormand, Prince, 1980)          https://doi.org/10.1016/0771-050X(80)90013-3
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.errors import UsageError
from genflow.maths.paths import Path, Spacing, Time, along, over
from genflow.maths.rng import Rng

Denoise = Callable[[Tensor, Time], Tensor]  # one time for all rows, or one per row (adaptive solvers)


def ddim(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng, *, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al., 2021, equation 12); eta = 0 is deterministic, eta = 1 is DDPM's ancestral sampling.

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - up^2) eps + up z
        up  = eta sigma_s sqrt(1 - (sigma_s alpha_t / (alpha_s sigma_t))^2)
    """
    for t, s in zip(times[:-1], times[1:], strict=True):
        alpha_t, sigma_t, alpha_s, sigma_s = path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s)
        x0 = denoise(x, t)
        eps = (x - alpha_t * x0) / sigma_t
        up = eta * sigma_s * math.sqrt(max(0.0, 1 - (sigma_s * alpha_t / (alpha_s * sigma_t)) ** 2))
        x = alpha_s * x0 + math.sqrt(max(0.0, sigma_s**2 - up**2)) * eps
        if up > 0:
            x = x + up * rng.normal(x.shape)
    return x


def ddpm(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng) -> Tensor:
    """DDPM's ancestral sampling, any number of steps (Ho et al., 2020, algorithm 2, with the posterior variance)."""
    return ddim(denoise, path, x, times, rng, eta=1.0)


class _StraightOde:
    """The probability flow ODE of a model, in the straight path's variables (y, u)."""

    def __init__(self, denoise: Denoise, path: Path) -> None:
        self._denoise, self._path = denoise, path

    def scale(self, t: float) -> float:
        return self._path.alpha(t) + self._path.sigma(t)

    def velocity(self, y: Tensor, u: float) -> Tensor:
        """dy/du at u > 0, for y (B, ...)."""
        t = self._path.time(u)
        return (y - self._denoise(y * self.scale(t), t)) / u

    def velocities(self, y: Tensor, u: Tensor) -> Tensor:
        """dy/du for y (B, ...) at one time per row, u (B,) > 0."""
        t = torch.tensor([self._path.time(each) for each in u.tolist()], dtype=u.dtype)
        return (y - self._denoise(y * along(self.scale, t, y), t)) / over(u, y)


def euler(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng) -> Tensor:
    """Euler's method, order 1. One evaluation per step."""
    ode, u = _StraightOde(denoise, path), [path.flow_time(t) for t in times]
    y = x / ode.scale(times[0])
    for a, b in zip(u[:-1], u[1:], strict=True):
        y = y + (b - a) * ode.velocity(y, a)
    return y * ode.scale(times[-1])


def midpoint(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng) -> Tensor:
    """The midpoint method, order 2. Two evaluations per step, none of them at t = 0."""
    ode, u = _StraightOde(denoise, path), [path.flow_time(t) for t in times]
    y = x / ode.scale(times[0])
    for a, b in zip(u[:-1], u[1:], strict=True):
        halfway = y + (b - a) / 2 * ode.velocity(y, a)
        y = y + (b - a) * ode.velocity(halfway, (a + b) / 2)
    return y * ode.scale(times[-1])


def heun(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng) -> Tensor:
    """Heun's method (Karras et al., 2022, algorithm 1), order 2. Two evaluations per step, one in the last."""
    ode, u = _StraightOde(denoise, path), [path.flow_time(t) for t in times]
    y = x / ode.scale(times[0])
    for a, b in zip(u[:-1], u[1:], strict=True):
        slope = ode.velocity(y, a)
        ahead = y + (b - a) * slope
        y = ahead if b <= 0 else y + (b - a) / 2 * (slope + ode.velocity(ahead, b))
    return y * ode.scale(times[-1])


def ab2(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng) -> Tensor:
    """The two-step Adams-Bashforth method, order 2. One evaluation per step; the previous slope is reused.

    The first step is Euler's. The coefficients are those of a variable step size.
    """
    ode, u = _StraightOde(denoise, path), [path.flow_time(t) for t in times]
    y = x / ode.scale(times[0])
    before: Tensor | None = None
    width = 0.0
    for a, b in zip(u[:-1], u[1:], strict=True):
        slope = ode.velocity(y, a)
        step = b - a
        if before is None:
            y = y + step * slope
        else:
            ratio = step / (2 * width)
            y = y + step * ((1 + ratio) * slope - ratio * before)
        before, width = slope, step
    return y * ode.scale(times[-1])


def edm_heun(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng) -> Tensor:
    """EDM's sampler (Karras et al., 2022, algorithm 1): Heun's method in (x/alpha, sigma/alpha), order 2.

    Two evaluations per step, one in the last. It is designed for `spaced_times(..., "karras")`. If alpha is 0 at the
    first time, x/alpha is infinite, and the first step is a DDIM step.
    """
    alphas = [path.alpha(t) for t in times]
    s = [path.sigma(t) / alpha if alpha else math.inf for t, alpha in zip(times, alphas, strict=True)]
    z = x / alphas[0] if alphas[0] else x
    for i in range(len(times) - 1):
        if not alphas[i]:
            z = denoise(x, times[i]) + s[i + 1] * x / path.sigma(times[i])
            continue
        slope = (z - denoise(z * alphas[i], times[i])) / s[i]
        if s[i + 1] > 0:
            ahead = z + (s[i + 1] - s[i]) * slope
            slope = (slope + (ahead - denoise(ahead * alphas[i + 1], times[i + 1])) / s[i + 1]) / 2
        z = z + (s[i + 1] - s[i]) * slope
    return z * alphas[-1]


def dpmpp_2m(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng) -> Tensor:
    """DPM-Solver++ 2M (Lu et al., 2022, algorithm 2), order 2. One evaluation per step; the previous x_0 is reused.

        x_s = (sigma_s/sigma_t) x_t - alpha_s (e^-h - 1) D,   D = (1 + 1/2r) x_0 - 1/2r x_0',   h = lambda_s - lambda_t

    with x_0' and h' = r h from the previous step. The first step has no previous step, and in the last one h is
    infinite (sigma = 0). Both are of order 1, which is DDIM.
    """
    before: Tensor | None = None
    width = math.inf
    for t, s in zip(times[:-1], times[1:], strict=True):
        alpha_t, sigma_t, alpha_s, sigma_s = path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s)
        x0 = denoise(x, t)
        decay = alpha_t * sigma_s / (alpha_s * sigma_t)  # e^-h
        h = -math.log(decay) if decay > 0 else math.inf
        share = h / (2 * width) if h < math.inf else 0.0  # 1/2r
        D = x0 if before is None or share == 0 else (1 + share) * x0 - share * before
        x = (sigma_s / sigma_t) * x + alpha_s * (1 - decay) * D
        before, width = x0, h
    return x


# Dormand and Prince's tableau: rows a_ij with the nodes c_i. The last row is the solution of order 5, so its slope is
# also the first slope of the next step. E is the difference from the solution of order 4.
_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


MAX_ADAPTIVE_STEPS = 2_000  # accepted and rejected ones; each has six evaluations


def rk45(
    denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng, *, tolerance: float = 1e-5
) -> Tensor:
    """Dormand and Prince's adaptive Runge-Kutta method, order 5, as a reference solution (Dormand, Prince, 1980).

    Every row has its own step sizes, so no row depends on the other rows of the batch. A step is accepted if the root
    mean square of its error, divided by tolerance (1 + |y|), is at most 1. Only the first, the second and the last of
    `times` are used: they give the ends and the first step size. The adaptive steps stop at the path's `cleanest`
    time, because velocities are undefined at t = 0; one Euler step covers the rest.

    Raises:
        UsageError: the tolerance is not reached within `MAX_ADAPTIVE_STEPS`.
    """
    ode = _StraightOde(denoise, path)
    end, last = path.flow_time(times[-1]), max(path.flow_time(times[-1]), path.flow_time(path.cleanest))
    y = x / ode.scale(times[0])
    # times are on the CPU, where they are read: a GPU is waited for once in a step, for its error
    u = torch.full((len(x),), path.flow_time(times[0]), dtype=torch.float64)
    h = torch.full_like(u, min(path.flow_time(times[0]) - path.flow_time(times[1]), float(u[0]) - last))
    slope, tried = ode.velocities(y, u), 0
    while bool((moving := u > last).any()):
        if (tried := tried + 1) > MAX_ADAPTIVE_STEPS:
            message = f"tolerance: rk45 does not reach {tolerance:g} within {MAX_ADAPTIVE_STEPS:,} steps"
            raise UsageError(message, "set a larger sample.tolerance, such as 1e-5")
        slopes = [slope]
        for c, row in zip(_C[1:], _A[1:], strict=True):
            ahead = y - over(h, y) * sum(a * k for a, k in zip(row, slopes, strict=True))
            slopes.append(ode.velocities(ahead, (u - c * h).clamp(min=last)))
        error = over(h, y) * sum(e * k for e, k in zip(_E, slopes, strict=True))
        size = tolerance * (1 + torch.maximum(y.abs(), ahead.abs()))
        wrong = (error / size).flatten(1).square().mean(1).sqrt().cpu().double()
        accepted = moving & ((wrong <= 1) | (h <= 1e-5))  # below 1e-5 the error is dominated by rounding
        keep = over(accepted, y).bool()
        y, slope = torch.where(keep, ahead, y), torch.where(keep, slopes[-1], slope)
        u = torch.where(accepted, u - h, u)
        h = h * (0.9 * wrong.clamp(min=1e-10) ** -0.2).clamp(0.2, 5)
        u = torch.where(u - last < 1e-9, last, u)
        h = torch.minimum(h.clamp(min=1e-5), u - last)
    return (y + (end - last) * slope) * ode.scale(times[-1])


@dataclass(frozen=True)
class Sampler:
    """A sampler with its declared properties.

    Args:
        run: the function, sampler(denoise, path, x, times, rng, **options).
        order: its order of convergence as an ODE solver; 0 for a stochastic one.
        stochastic: whether it draws noise.
        evaluations: denoiser evaluations as a function of steps; None for an adaptive one, which chooses its steps.
        spacing: the time grid for which it is designed.
    """

    run: Callable[..., Tensor]
    order: int
    stochastic: bool
    evaluations: Callable[[int], int] | None
    spacing: Spacing = "uniform"


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(ddpm, 0, True, lambda steps: steps),
    "ddim": Sampler(ddim, 1, False, lambda steps: steps),
    "euler": Sampler(euler, 1, False, lambda steps: steps),
    "midpoint": Sampler(midpoint, 2, False, lambda steps: 2 * steps),
    "heun": Sampler(heun, 2, False, lambda steps: 2 * steps - 1),
    "ab2": Sampler(ab2, 2, False, lambda steps: steps),
    "dpmpp_2m": Sampler(dpmpp_2m, 2, False, lambda steps: steps),
    "edm_heun": Sampler(edm_heun, 2, False, lambda steps: 2 * steps - 1, "karras"),
    "rk45": Sampler(rk45, 5, False, None),
}
