"""Gaussian paths between data and noise, as diffusion and flow models use them.

    x_t = alpha_t x_0 + sigma_t eps,   eps ~ N(0, I)          t = 0 is data, t = 1 is noise

A net predicts x, eps, v or the velocity u. Given x_t, each of the four determines the others; `x0_from` converts them.

Dividing by alpha + sigma turns every path into the straight one,

    y = x_t / (alpha + sigma) = (1 - u) x_0 + u eps,   u = sigma / (alpha + sigma),

so an ODE solver that is written once, in (y, u), works on every path. Euler's method in these variables is DDIM.

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
EDM_SIGMAS = 0.002, 80.0  # the range of sigma/alpha in EDM (Karras et al., 2022, table 1)


class Path(ABC):
    """A Gaussian path. Times are floats in [0, 1]; alpha and sigma are computed in double precision."""

    @abstractmethod
    def alpha(self, t: float) -> float:
        """The coefficient of the data at time t."""

    @abstractmethod
    def sigma(self, t: float) -> float:
        """The coefficient of the noise at time t."""

    @abstractmethod
    def net_time(self, t: float) -> float:
        """The net's time input at time t, on the scale of 0..1000."""

    @abstractmethod
    def time(self, u: float) -> float:
        """The time t at which sigma / (alpha + sigma) = u; the inverse of `flow_time`."""

    def flow_time(self, t: float) -> float:
        """u = sigma / (alpha + sigma): the time on the straight path with the same noise-to-signal ratio."""
        return self.sigma(t) / (self.alpha(t) + self.sigma(t))

    @property
    def cleanest(self) -> float:
        """The smallest time at which a net on this path is trained."""
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
    """DDPM's path through T noise levels: level k = 0..T-1 is at t = (k + 1)/T, and the data at t = 0.

    Between levels log alpha_bar is interpolated linearly, so samplers can use any time. A uniform grid of times is
    called "trailing" spacing in diffusers.

    Args:
        betas: (T,) the variance added at each level (Ho et al., 2020, equation 2).
    """

    def __init__(self, betas: np.ndarray) -> None:
        self.T = len(betas)
        self._cleanest = 1 / self.T
        alpha_bar = np.cumprod(1 - np.asarray(betas, np.float64))
        self.alpha_bar = alpha_bar  # (T,); alpha_bar[k] is the value at t = (k + 1)/T
        self._log = np.concatenate([[0.0], np.log(alpha_bar)])
        nodes = np.sqrt(np.exp(self._log))
        noise = np.sqrt(-np.expm1(self._log))
        self._u = noise / (nodes + noise)  # increases with t
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
        # The exact inverse of the interpolation: log alpha_bar = -log(1 + r^2), r = u/(1 - u)
        log_alpha_bar = -math.log1p((u / (1 - u)) ** 2)
        return float(np.interp(-log_alpha_bar, -self._log, self._t))


class EdmPath(Path):
    """EDM's path, scaled to preserve variance: sigma/alpha is EDM's sigma, and t is the straight path's time for it.

        alpha = (1 - t)/n, sigma = t/n,   n = sqrt((1 - t)^2 + t^2)

    The net's time input is log(sigma/alpha), EDM's c_noise up to a factor, mapped from the range 0.002..80 to 0..1000.
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
        """The net's time input, 0..1000, for log(sigma/alpha) of any shape."""
        low, high = math.log(EDM_SIGMAS[0]), math.log(EDM_SIGMAS[1])
        return 1000 * ((log_ratio - low) / (high - low)).clamp(0, 1)


def linear_betas(T: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """DDPM's schedule, (T,): betas increase linearly (Ho et al., 2020, section 4)."""
    return np.linspace(first, last, T, dtype=np.float64)


def cosine_betas(T: int = 1000, s: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """The cosine schedule, (T,): alpha_bar = cos^2, betas clipped at 0.999 (Nichol, Dhariwal, 2021, equation 17)."""
    level = np.arange(T + 1, dtype=np.float64) / T
    f = np.cos((level + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], largest)


BETAS = {"linear": linear_betas, "cosine": cosine_betas}


def x0_from(prediction: Tensor, kind: Prediction, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """Convert a prediction to x_0, given x_t; all tensors are (B, ...) or broadcast to it.

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
    """The regression target of a net that predicts `kind`, for x_t = alpha x_0 + sigma eps; inverse of `x0_from`."""
    if kind == "x":
        return x0
    if kind == "eps":
        return eps
    return alpha * eps - sigma * x0 if kind == "v" else eps - x0


def x0_sensitivity(kind: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """|d x_0 / d prediction|: the factor between an error of the prediction and the resulting error of x_0."""
    if kind == "x":
        return torch.ones_like(sigma)
    if kind == "eps":
        return sigma / alpha
    return sigma / (alpha * alpha + sigma * sigma) if kind == "v" else sigma / (alpha + sigma)


def over(values: Tensor, x: Tensor) -> Tensor:
    """Reshape values (B,) to (B, 1, ..., 1), on x's device, so that they broadcast over x (B, ...)."""
    return values.reshape(-1, *(1,) * (x.dim() - 1)).to(x.dtype).to(x.device, non_blocking=True)


Time = float | Tensor


def along(function: Callable[[float], float], t: Time, x: Tensor) -> Time:
    """function(t) for one time, or for one time per row (B,); the latter result broadcasts over x (B, ...).

    Times are best on the CPU, because this function reads them one by one.
    """
    if not isinstance(t, Tensor):
        return function(t)
    return over(torch.tensor([function(each) for each in t.tolist()]), x)


def uniform_times(steps: int) -> list[float]:
    """steps + 1 evenly spaced times from 1 to 0."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()


def ratio_ends(path: Path) -> tuple[float, float]:
    """The smallest and the largest sigma/alpha of a grid that is spaced by it: EDM's, within the path's own range."""

    def ratio(t: float) -> float:
        return path.sigma(t) / path.alpha(t) if path.alpha(t) else math.inf

    return max(EDM_SIGMAS[0], ratio(path.cleanest)), min(EDM_SIGMAS[1], ratio(1.0))


Spacing = Literal["uniform", "karras", "logsnr"]


def spaced_times(path: Path, steps: int, spacing: Spacing = "uniform", rho: float = 7.0) -> list[float]:
    """The time grid of a sampler: steps + 1 decreasing times, the last one 0.

        uniform   even in t, from 1
        karras    even in (sigma/alpha)^(1/rho), from at most 80 to at least 0.002, then 0  (Karras et al., 2022, eq. 5)
        logsnr    even in log(sigma/alpha) between the same ends, then 0

    The ends are limited to the range in which the path's net is trained. A grid that starts below t = 1 needs initial
    noise of that sigma.
    """
    if spacing == "uniform":
        return uniform_times(steps)
    low, high = ratio_ends(path)
    share = np.linspace(0, 1, steps)
    if spacing == "karras":
        ratios = (high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    else:
        ratios = np.exp(math.log(high) + share * (math.log(low) - math.log(high)))
    return [*(path.time(r / (1 + r)) for r in ratios.tolist()), 0.0]
