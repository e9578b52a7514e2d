"""DDPM: learn to undo T small steps of noise; DDIM and every ODE solver are samplers of the same model.

    x_k = sqrt(alpha_bar_k) x + sqrt(1 - alpha_bar_k) eps,   k = 0..T-1
    loss = E_k ||net(x_k, k) - target||^2                    target: eps, x, or v = alpha eps - sigma x

Log-likelihood: the variational bound, its T - 1 middle terms estimated on stratified levels,

    -log P(x) <= KL(q(x_T | x) || N(0, I)) + sum_k (SNR_{k-1} - SNR_k)/2 ||x - x_net(x_k, k)||^2 - log P(x | x_0)

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020)                   https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models (Nichol, Dhariwal, 2021)   https://arxiv.org/abs/2102.09672
    Progressive Distillation (Salimans, Ho, 2022), for v                         https://arxiv.org/abs/2202.00512
    Variational Diffusion Models (Kingma et al., 2021), for the bound in SNR     https://arxiv.org/abs/2107.00630
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.facts import Facts
from genflow.families.base import LogLikelihood
from genflow.families.gaussian import Gaussian
from genflow.maths import likelihood
from genflow.maths.guidance import Guided, forget
from genflow.maths.paths import BETAS, DiscretePath, over, target, x0_from
from genflow.maths.seeds import Rng


class Ddpm(Gaussian):
    """A denoiser for T noise levels.

    Args:
        nets: {"net": predicts `predict` from (x_k (B, C, H, W), k (B,), label (B,))}.
        facts: of the data.
        schedule: how the noise grows.
        predict: what the net predicts.
        T: the number of noise levels.
        forget: share of labels dropped while training, so that guidance works.
        bound_levels: noise levels at which the likelihood bound is evaluated; T of them would be all.
    """

    title = "DDPM"
    objective = "denoising at T noise levels"
    likelihood = "lower-bound"
    path: DiscretePath
    alphas: Tensor
    sigmas: Tensor

    def __init__(
        self,
        nets: dict[str, nn.Module],
        facts: Facts,
        *,
        schedule: Literal["linear", "cosine"] = "cosine",
        predict: Literal["eps", "x", "v"] = "v",
        T: Annotated[int, Field(ge=2, le=10_000)] = 1000,
        forget: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        bound_levels: Annotated[int, Field(ge=2, le=10_000)] = 40,
    ) -> None:
        path = DiscretePath(BETAS[schedule](T))
        super().__init__(nets["net"], facts, path, predict)
        self.T, self.forget, self.bound_levels = T, forget, bound_levels
        alpha_bar = torch.from_numpy(path.alpha_bar)
        self.register_buffer("alphas", alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("sigmas", (1 - alpha_bar).sqrt().float(), persistent=False)

    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch.x
        eps = rng.normal(x.shape) if batch.noise is None else batch.noise
        k = (rng.uniform((len(x),)) * self.T).long().to(x.device)
        label = forget(batch.label, self.facts.classes, self.forget, rng)
        alpha, sigma = over(self.alphas[k], x), over(self.sigmas[k], x)
        answer = self.net(alpha * x + sigma * eps, k.float() * (1000 / self.T), label)
        return (answer.float() - target(self.predict, x, eps, alpha, sigma)).square().mean(), {}

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, label: Tensor, rng: Rng) -> LogLikelihood:
        """The variational bound: prior and decoder exactly, the levels between stratified and unbiased."""
        net = Guided(self.net, label, self.facts.classes)
        prior, decoder = self._prior(x), self._decoder(x, net, rng)
        cuts, terms = self._strata(), []
        for low, high in zip(cuts[:-1], cuts[1:], strict=True):  # each row draws one level of each stratum
            k = low + (rng.uniform((len(x),)) * (high - low)).long().clamp(max=high - low - 1)
            terms.append((high - low) * self._gap(x, k.to(x.device), net, rng))
        stacked = torch.stack(terms)
        method = f"variational bound, {len(terms)} of {self.T - 1} levels"
        # neighbouring strata stand in for a repeated draw: half their squared difference, at either side
        stderr = torch.cat([stacked[1:2], stacked, stacked[-2:-1]]).diff(dim=0).square().sum(0).div(2).sqrt()
        return LogLikelihood(-(prior + decoder + stacked.sum(0)), "lower-bound", stderr, net.nfe, method)

    def _strata(self) -> list[int]:
        """Where the strata of the levels 1..T-1 begin, and T: even in log k, because the first levels cost most."""
        count = min(self.bound_levels, self.T - 1)
        cuts = [1]
        for i in range(1, count + 1):
            cuts.append(min(max(round(self.T ** (i / count)), cuts[-1] + 1), self.T - count + i))
        return cuts

    def _noised(self, x: Tensor, k: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = over(self.alphas[k], x), over(self.sigmas[k], x)
        return alpha * x + sigma * rng.normal(x.shape), alpha, sigma

    def _guess(self, x_k: Tensor, k: Tensor, alpha: Tensor, sigma: Tensor, net: Guided) -> Tensor:
        x0 = x0_from(net.at(x_k, k.float() * (1000 / self.T)), self.predict, x_k, alpha, sigma)
        return x0 if self.facts.is_points else x0.clamp(-1, 1)

    def _gap(self, x: Tensor, k: Tensor, net: Guided, rng: Rng) -> Tensor:
        """KL(q(x_{k-1} | x_k, x) || p(x_{k-1} | x_k)) with the posterior's variance, in nats (B,)."""
        x_k, alpha, sigma = self._noised(x, k, rng)
        snr = torch.from_numpy(self.path.alpha_bar / (1 - self.path.alpha_bar)).to(x.device)
        weight = (snr[k - 1] - snr[k]) / 2
        error = (x - self._guess(x_k, k, alpha, sigma, net)).square().flatten(1).sum(1).double()
        return weight * error

    def _prior(self, x: Tensor) -> Tensor:
        """KL(q(x_T | x) || N(0, I)), in nats (B,)."""
        alpha, sigma = self.alphas[-1].double(), self.sigmas[-1].double()
        each = 0.5 * ((alpha * x.double()).square() + sigma**2 - 1 - 2 * sigma.log())
        return each.flatten(1).sum(1)

    def _decoder(self, x: Tensor, net: Guided, rng: Rng) -> Tensor:
        """-log P(x | x_0), a Gaussian at the net's guess, in nats (B,): its mass in each bin for pictures."""
        k = torch.zeros(len(x), dtype=torch.long, device=x.device)
        x_0, alpha, sigma = self._noised(x, k, rng)
        mean = self._guess(x_0, k, alpha, sigma, net).double()
        log_scale = (sigma / alpha).double().log()
        if self.facts.levels is None:
            density = -0.5 * ((x.double() - mean) / log_scale.exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)
            return -likelihood.discrete_nats(density.flatten(1).sum(1), self.facts)
        mass = likelihood.discretized(torch.special.log_ndtr, x.double(), mean, log_scale, self.facts.levels)
        return -mass.flatten(1).sum(1)
