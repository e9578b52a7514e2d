"""A Gaussian mixture: a data distribution whose denoiser, velocity and density have a closed form.

    p(x_0) = sum_k w_k N(m_k, s^2 I)
    p(x_t) = sum_k w_k N(alpha m_k, v I),   v = alpha^2 s^2 + sigma^2
    E[x_0 | x_t, k] = m_k + (alpha s^2 / v) (x_t - alpha m_k)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genflow.maths.paths import Path, Prediction, Time, along, target


class Mixture:
    """A mixture of Gaussians with equal standard deviations over x (B, D) or (B, C, H, W), in double precision.

    Args:
        weights: (K,), summing to 1.
        means: (K, D).
        std: the standard deviation s of every component.
    """

    def __init__(self, weights: Sequence[float], means: Sequence[Sequence[float]], std: float) -> None:
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.means = torch.tensor(means, dtype=torch.float64)
        self.std = std

    def _log_parts(self, x: Tensor, alpha: Time, sigma: Time) -> tuple[Tensor, Tensor]:
        """log w_k N(x; alpha m_k, v) for every component, (B, K), and v, (1 or B, 1)."""
        alpha, sigma = (torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1) for value in (alpha, sigma))
        v = alpha**2 * self.std**2 + sigma**2
        squares = (x[:, None] - alpha[..., None] * self.means).square().sum(-1)
        D = self.means.shape[1]
        return self.weights.log() - 0.5 * squares / v - 0.5 * D * (2 * math.pi * v).log(), v

    def denoise_at(self, x: Tensor, alpha: Time, sigma: Time) -> Tensor:
        """E[x_0 | x_t]; alpha and sigma are numbers or have one value per row."""
        flat = x.double().flatten(1)
        parts, v = self._log_parts(flat, alpha, sigma)
        a = torch.as_tensor(alpha, dtype=torch.float64).reshape(-1, 1)
        each = self.means + (a * self.std**2 / v)[..., None] * (flat[:, None] - a[..., None] * self.means)
        return (parts.softmax(1)[..., None] * each).sum(1).reshape(x.shape)

    def denoiser(self, path: Path):
        """The argument `denoise` of samplers."""
        return lambda x, t: self.denoise_at(x, along(path.alpha, t, x), along(path.sigma, t, x))

    def velocity(self, y: Tensor, u: float) -> Tensor:
        """E[eps - x_0 | y_u] on the straight path."""
        return (y - self.denoise_at(y, 1 - u, u)) / u

    def predict(self, kind: Prediction, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """The output of an optimal network for x_t."""
        x0 = self.denoise_at(x, alpha, sigma)
        return target(kind, x0, (x.double() - alpha * x0) / sigma, alpha, sigma)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x_0), (B,)."""
        return self._log_parts(x.double().flatten(1), 1.0, 0.0)[0].logsumexp(1)

    def cdf(self, y: Tensor, u: float) -> Tensor:
        """P(y_u <= y) in one dimension, y (B, 1): along the ODE, every sample keeps its quantile."""
        std = math.sqrt(((1 - u) * self.std) ** 2 + u**2)
        return (self.weights * torch.special.ndtr((y - (1 - u) * self.means[:, 0]) / std)).sum(1, keepdim=True)

    def quantile(self, p: Tensor, u: float) -> Tensor:
        """The y with cdf(y, u) = p, (B, 1), by bisection."""
        low, high = torch.full_like(p, -9.0), torch.full_like(p, 9.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.cdf(middle, u) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def draw(self, rows: int, seed: int = 0) -> Tensor:
        """(rows, D) samples of x_0."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, rows, replacement=True, generator=generator)
        noise = torch.randn(rows, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + self.std * noise


TWO = Mixture([0.7, 0.3], [[0.8, 0.4], [-0.6, -0.9]], 0.25)
