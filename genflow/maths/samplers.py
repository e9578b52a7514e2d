"""Samplers: pure functions that walk from noise to data along any Gaussian path.

    sampler(denoise, path, x, times, rng, **options) -> x at times[-1]

`denoise(x_t, t) -> E[x_0 | x_t]` is all they know of a model, so every sampler works on every checkpoint of
a Gaussian path, whatever its net predicts. Times fall from 1 to 0. The ODE solvers work on the straight path
(see `paths`):

    dy/du = (y - x_0) / u,   y = x_t / (alpha + sigma),   u = sigma / (alpha + sigma)

so `euler` equals DDIM with eta = 0 on every path, to rounding.

References:
    Denoising Diffusion Implicit Models (Song et al., 2021), equation 12   https://arxiv.org/abs/2010.02502
    Elucidating the Design Space (Karras et al., 2022), algorithm 1        https://arxiv.org/abs/2206.00364
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from genflow.maths.paths import Path
from genflow.maths.seeds import Rng

Denoise = Callable[[Tensor, float], Tensor]


def ddim(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng, *, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al., 2021, equation 12); eta = 0 draws nothing, eta = 1 is DDPM's ancestral sampling.

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
    """DDPM's ancestral sampling (Ho et al., 2020, algorithm 2, posterior variance), with any number of steps."""
    return ddim(denoise, path, x, times, rng, eta=1.0)


class _Straight:
    """A model's ODE in the straight path's variables."""

    def __init__(self, denoise: Denoise, path: Path) -> None:
        self._denoise, self._path = denoise, path

    def scale(self, t: float) -> float:
        return self._path.alpha(t) + self._path.sigma(t)

    def velocity(self, y: Tensor, u: float) -> Tensor:
        """dy/du at u > 0."""
        t = self._path.time(u)
        return (y - self._denoise(y * self.scale(t), t)) / u


def euler(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng) -> Tensor:
    """Euler's method, order 1. One evaluation a step."""
    ode, u = _Straight(denoise, path), [path.flow_time(t) for t in times]
    y = x / ode.scale(times[0])
    for a, b in zip(u[:-1], u[1:], strict=True):
        y = y + (b - a) * ode.velocity(y, a)
    return y * ode.scale(times[-1])


def midpoint(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng) -> Tensor:
    """The midpoint method, order 2. Two evaluations a step, none of them at t = 0."""
    ode, u = _Straight(denoise, path), [path.flow_time(t) for t in times]
    y = x / ode.scale(times[0])
    for a, b in zip(u[:-1], u[1:], strict=True):
        halfway = y + (b - a) / 2 * ode.velocity(y, a)
        y = y + (b - a) * ode.velocity(halfway, (a + b) / 2)
    return y * ode.scale(times[-1])


def heun(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng) -> Tensor:
    """Heun's method (Karras et al., 2022, algorithm 1), order 2. Two evaluations a step, one in the last."""
    ode, u = _Straight(denoise, path), [path.flow_time(t) for t in times]
    y = x / ode.scale(times[0])
    for a, b in zip(u[:-1], u[1:], strict=True):
        slope = ode.velocity(y, a)
        ahead = y + (b - a) * slope
        y = ahead if b <= 0 else y + (b - a) / 2 * (slope + ode.velocity(ahead, b))
    return y * ode.scale(times[-1])


def ab2(denoise: Denoise, path: Path, x: Tensor, times: Sequence[float], rng: Rng) -> Tensor:
    """Adams-Bashforth's two-step method, order 2. One evaluation a step: the last slope is remembered."""
    ode, u = _Straight(denoise, path), [path.flow_time(t) for t in times]
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


@dataclass(frozen=True)
class Sampler:
    """A sampler, and what it promises.

    Args:
        walk: the function.
        order: its order of convergence as an ODE solver; 0 for a stochastic one.
        stochastic: whether it draws noise on the way.
        evaluations: denoiser evaluations as a function of steps.
    """

    walk: Callable[..., Tensor]
    order: int
    stochastic: bool
    evaluations: Callable[[int], int]


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(ddpm, 0, True, lambda steps: steps),
    "ddim": Sampler(ddim, 1, False, lambda steps: steps),
    "euler": Sampler(euler, 1, False, lambda steps: steps),
    "midpoint": Sampler(midpoint, 2, False, lambda steps: 2 * steps),
    "heun": Sampler(heun, 2, False, lambda steps: 2 * steps - 1),
    "ab2": Sampler(ab2, 2, False, lambda steps: steps),
}
