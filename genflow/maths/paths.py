"""Gaussian paths: every way from data to noise that diffusion and flow models take.

    x_t = alpha_t x_0 + sigma_t eps,   eps ~ N(0, I)          t = 0 is data, t = 1 is noise

What a net predicts (x, eps, v or the velocity u) is one fact in four spellings; `x0_from` reads each of them.

Dividing by alpha + sigma turns every path into the straight one,

    y = x_t / (alpha + sigma) = (1 - u) x_0 + u eps,   u = sigma / (alpha + sigma),

so an ODE solver written once, in (y, u), serves every path: Euler in these variables *is* DDIM.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020)               https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models (Nichol, Dhariwal, 2021) https://arxiv.org/abs/2102.09672
    Progressive Distillation (Salimans, Ho, 2022), for v                      https://arxiv.org/abs/2202.00512
    Flow Matching for Generative Modeling (Lipman et al., 2023)               https://arxiv.org/abs/2210.02747
    Elucidating the Design Space (Karras et al., 2022), for the steps         https://arxiv.org/abs/2206.00364
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Prediction = Literal["eps", "x", "v", "velocity"]
EDM_SIGMAS = 0.002, 80.0  # EDM's range of sigma / alpha


class Path(ABC):
    """A Gaussian path. Times are floats in [0, 1]; the scalars are computed in double precision."""

    @abstractmethod
    def alpha(self, t: float) -> float:
        """How much of the data is left at time t."""

    @abstractmethod
    def sigma(self, t: float) -> float:
        """How much noise there is at time t."""

    @abstractmethod
    def net_time(self, t: float) -> float:
        """What the net is told at time t, on the scale of 0..1000."""

    @abstractmethod
    def time(self, u: float) -> float:
        """The time at which sigma / (alpha + sigma) = u."""

    def flow_time(self, t: float) -> float:
        """u = sigma / (alpha + sigma): the time on the straight path with the same noise-to-signal ratio."""
        return self.sigma(t) / (self.alpha(t) + self.sigma(t))

    @property
    def cleanest(self) -> float:
        """The smallest time that a net of this path was taught."""
        return 1e-3


class StraightPath(Path):
    """alpha = 1 - t, sigma = t: the path of flow matching and rectified flow."""

    def alpha(self, t: float) -> float:
        return 1 - t

    def sigma(self, t: float) -> float:
        return t

    def net_time(self, t: float) -> float:
        return 1000 * t

    def time(self, u: float) -> float:
        return u


class DiscretePath(Path):
    """DDPM's path through T noise levels: the level k = 0..T-1 lies at t = (k + 1)/T, the data at t = 0.

    Between levels log alpha_bar is interpolated linearly, so that samplers may stop anywhere. A uniform grid
    of times is what diffusers calls "trailing" spacing.

    Args:
        betas: (T,) the variances added level by level.
    """

    def __init__(self, betas: np.ndarray) -> None:
        self.T = len(betas)
        self._cleanest = 1 / self.T
        alpha_bar = np.cumprod(1 - np.asarray(betas, np.float64))
        self.alpha_bar = alpha_bar  # (T,), alpha_bar[k] belongs to t = (k + 1)/T
        self._log = np.concatenate([[0.0], np.log(alpha_bar)])
        nodes = np.sqrt(np.exp(self._log))
        noise = np.sqrt(-np.expm1(self._log))
        self._u = noise / (nodes + noise)  # rises with t
        self._t = np.arange(self.T + 1) / self.T

    def _log_alpha_bar(self, t: float) -> float:
        return float(np.interp(t, self._t, self._log))

    def alpha(self, t: float) -> float:
        return math.exp(0.5 * self._log_alpha_bar(t))

    def sigma(self, t: float) -> float:
        return math.sqrt(-math.expm1(self._log_alpha_bar(t)))

    def net_time(self, t: float) -> float:
        return (t * self.T - 1) * (1000 / self.T)

    @property
    def cleanest(self) -> float:
        return self._cleanest

    def time(self, u: float) -> float:
        if u >= self._u[-1]:
            return 1.0
        # exact inverse of the interpolation: log alpha_bar = -log(1 + r^2), r = u/(1 - u)
        log_alpha_bar = -math.log1p((u / (1 - u)) ** 2)
        return float(np.interp(-log_alpha_bar, -self._log, self._t))


class EdmPath(Path):
    """EDM's path, scaled to keep the variance: sigma/alpha is EDM's sigma, and t the straight path's time of it.

        alpha = (1 - t)/n, sigma = t/n,   n = sqrt((1 - t)^2 + t^2)

    The net is told log(sigma/alpha), which is EDM's c_noise, as its place between 0.002 and 80.
    """

    def alpha(self, t: float) -> float:
        return (1 - t) / math.hypot(1 - t, t)

    def sigma(self, t: float) -> float:
        return t / math.hypot(1 - t, t)

    def net_time(self, t: float) -> float:
        return float(self.net_time_of_log_ratio(torch.tensor(t, dtype=torch.float64).logit()))

    def time(self, u: float) -> float:
        return u

    @property
    def cleanest(self) -> float:
        return EDM_SIGMAS[0] / (1 + EDM_SIGMAS[0])

    @staticmethod
    def net_time_of_log_ratio(log_ratio: Tensor) -> Tensor:
        """The net's time for log(sigma/alpha)."""
        low, high = math.log(EDM_SIGMAS[0]), math.log(EDM_SIGMAS[1])
        return 1000 * ((log_ratio - low) / (high - low)).clamp(0, 1)


def linear_betas(T: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """DDPM's schedule: betas rise linearly (Ho et al., 2020, section 4)."""
    return np.linspace(first, last, T, dtype=np.float64)


def cosine_betas(T: int = 1000, s: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """The cosine schedule (Nichol, Dhariwal, 2021, equation 17): alpha_bar = cos^2, betas clipped at 0.999."""
    level = np.arange(T + 1, dtype=np.float64) / T
    f = np.cos((level + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], largest)


BETAS = {"linear": linear_betas, "cosine": cosine_betas}


def x0_from(prediction: Tensor, kind: Prediction, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """The data that a prediction means, given x_t.

        eps:       x_0 = (x_t - sigma eps) / alpha
        v:         v = alpha eps - sigma x_0        x_0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2)
        velocity:  u = eps - x_0                    x_0 = (x_t - sigma u) / (alpha + sigma)
    """
    if kind == "x":
        return prediction
    if kind == "eps":
        return (x - sigma * prediction) / alpha
    if kind == "v":
        return (alpha * x - sigma * prediction) / (alpha * alpha + sigma * sigma)
    return (x - sigma * prediction) / (alpha + sigma)


def target(kind: Prediction, x0: Tensor, eps: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """What a net that predicts `kind` should answer for x_t = alpha x_0 + sigma eps."""
    if kind == "x":
        return x0
    if kind == "eps":
        return eps
    return alpha * eps - sigma * x0 if kind == "v" else eps - x0


def x0_sensitivity(kind: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """|d x_0 / d prediction|: an error of the prediction, times this, is the error of x_0 that it means."""
    if kind == "x":
        return torch.ones_like(sigma)
    if kind == "eps":
        return sigma / alpha
    return sigma / (alpha * alpha + sigma * sigma) if kind == "v" else sigma / (alpha + sigma)


def over(values: Tensor, x: Tensor) -> Tensor:
    """(B,) reshaped to (B, 1, ..., 1), to stand beside x (B, ...)."""
    return values.reshape(-1, *(1,) * (x.dim() - 1)).to(x.dtype)


Time = float | Tensor


def along(function: Callable[[float], float], t: Time, x: Tensor) -> Time:
    """function(t) for one time, or for a time a row (B,), then shaped to stand beside x (B, ...)."""
    if not isinstance(t, Tensor):
        return function(t)
    return over(torch.tensor([function(each) for each in t.tolist()], device=x.device), x)


def uniform_times(steps: int) -> list[float]:
    """steps + 1 times from 1 to 0, evenly."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()


Spacing = Literal["uniform", "karras", "logsnr"]


def spaced_times(path: Path, steps: int, spacing: Spacing = "uniform", rho: float = 7.0) -> list[float]:
    """steps + 1 falling times, the last one 0: where a sampler stops on its way.

        uniform   t even, from 1
        karras    (sigma/alpha)^(1/rho) even, from at most 80 to at least 0.002, then 0   (Karras et al., 2022, eq. 5)
        logsnr    log(sigma/alpha) even between the same ends, then 0

    The ends give way to what the path's net was taught. A walk that begins below t = 1 begins with noise of that
    sigma.
    """
    if spacing == "uniform":
        return uniform_times(steps)

    def ratio(t: float) -> float:
        return path.sigma(t) / path.alpha(t) if path.alpha(t) else math.inf

    low, high = max(EDM_SIGMAS[0], ratio(path.cleanest)), min(EDM_SIGMAS[1], ratio(1.0))
    share = np.linspace(0, 1, steps)
    if spacing == "karras":
        ratios = (high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    else:
        ratios = np.exp(math.log(high) + share * (math.log(low) - math.log(high)))
    return [*(path.time(r / (1 + r)) for r in ratios.tolist()), 0.0]
