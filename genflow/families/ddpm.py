"""Diffusion: train a denoiser at T noise levels (DDPM) or at all noise levels (EDM); the sampler is chosen separately.

    x_t = alpha_t x + sigma_t eps                            DDPM: alpha^2 = alpha_bar_k, sigma^2 = 1 - alpha_bar_k
    loss = E_t w_t ||net(x_t, t) - target||^2                target: eps, x, v = alpha eps - sigma x, or u = eps - x

`schedule: edm` uses EDM's preconditioning. The inputs and targets of the net then have unit variance at every noise
level, for data of any standard deviation s (`facts.sigma_data`). With x_t / alpha at the noise level r = sigma/alpha,

    D(x_t) = c_skip x_t/alpha + c_out F(c_in x_t/alpha, c_noise)          c_skip = s^2/(s^2 + r^2), c_noise ~ log r
    ln r ~ N(log_mean, log_std^2),  weight 1/c_out^2                      c_out = s r/sqrt(s^2 + r^2) = s r c_in

So F is, up to its sign, the v of data with unit variance. `predict` can also be the velocity u of such data.

In u the data has the same factor at every noise level, so what a net learns of a picture at one level helps at all
others. In v the factor is sigma, which the net has to learn, too. A small transformer on latents learns u sooner
(docs/decisions/0022-nets-and-rates-on-latents.md).

`weight: min_snr` limits the weight of ||x - x_net||^2 to min(SNR, 5), for every kind of prediction.

The log-likelihood is the variational bound, or the density along the ODE, which is not a bound and usually higher.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020)                       https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models (Nichol, Dhariwal, 2021)       https://arxiv.org/abs/2102.09672
    Progressive Distillation (Salimans, Ho, 2022), for v                             https://arxiv.org/abs/2202.00512
    Elucidating the Design Space, EDM (Karras et al., 2022), table 1                 https://arxiv.org/abs/2206.00364
    Efficient Diffusion Training via Min-SNR Weighting (Hang et al., 2023)           https://arxiv.org/abs/2303.09556
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.families.base import LogLikelihood
from genflow.families.gaussian import Gaussian, latent_shift
from genflow.maths import likelihood, timesteps
from genflow.maths.guidance import Guided, drop_labels
from genflow.maths.paths import BETAS, DiscretePath, EdmPath, Time, over, target, x0_sensitivity
from genflow.maths.rng import Rng
from genflow.maths.wide import wide
from genflow.specs import DataSpec
from genflow.text import Label

MIN_SNR = 5.0  # gamma, as in the paper


class Ddpm(Gaussian):
    """A denoiser.

    Args:
        nets: {"net": predicts `predict` from (x_t (B, C, H, W), the time on the scale of 0..1000 (B,), label (B,))}.
        facts: of the data.
        schedule: the noise schedule; edm: continuous noise levels and EDM's preconditioning.
        predict: what the net predicts; with edm, v or velocity of data with unit variance.
        weight: uniform, or min_snr; with edm, uniform is EDM's weight.
        T: the number of noise levels; ignored with edm.
        shift: moves the noise levels of training towards noise, t' = s t/(1 + (s - 1) t); 1: not at all; null:
            `gaussian.latent_shift`, which is 1 for pictures and points; ignored with edm.
        log_mean: mean of ln(sigma/alpha) during training with edm.
        log_std: standard deviation of ln(sigma/alpha) during training with edm.
        uniform_share: share of edm's noise levels that are uniform in sigma/(alpha + sigma) instead. The normal
            distribution rarely gives low noise, which matters for likelihoods and narrow densities.
        forget: share of labels dropped during training, so that guidance works.
        bound: the kind of likelihood: the variational bound, or the estimate of an ODE solver.
        bound_levels: noise levels per sample at which the variational bound is evaluated.
        ode_steps: midpoint steps of the ODE estimate; four times as many for points.
        probes: trace probes of the ODE estimate.

    Raises:
        UsageError: schedule is edm, and predict is eps or x.
    """

    title = "DDPM"
    objective = "denoising at T noise levels"
    likelihood = "lower-bound"
    _alphas: Tensor
    _sigmas: Tensor

    def __init__(
        self,
        nets: dict[str, nn.Module],
        facts: DataSpec,
        *,
        schedule: Literal["linear", "cosine", "edm"] = "cosine",
        predict: Literal["eps", "x", "v", "velocity"] = "v",
        weight: Literal["uniform", "min_snr"] = "uniform",
        T: Annotated[int, Field(ge=2, le=10_000)] = 1000,
        shift: Annotated[float, Field(ge=1, le=100)] | None = None,
        log_mean: float = -1.2,
        log_std: Annotated[float, Field(gt=0)] = 1.2,
        uniform_share: Annotated[float, Field(ge=0, le=1)] = 0.0,
        forget: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        bound: Literal["variational", "ode"] = "variational",
        bound_levels: Annotated[int, Field(ge=2, le=10_000)] = 40,
        ode_steps: Annotated[int, Field(ge=2, le=1000)] = 20,
        probes: Annotated[int, Field(ge=1, le=100)] = 2,
    ) -> None:
        if schedule == "edm" and predict not in ("v", "velocity"):
            reason = f"family.schedule=edm needs family.predict=v or velocity, not {predict}"
            raise UsageError(reason, "use family.predict=v")
        path = EdmPath() if schedule == "edm" else DiscretePath(BETAS[schedule](T))
        super().__init__(nets["net"], facts, path, predict)
        self.schedule = schedule
        self.edm, self.weight, self.T, self.forget = schedule == "edm", weight, T, forget
        self.shift = latent_shift(facts) if shift is None else shift
        self.log_mean, self.log_std, self.uniform_share = log_mean, log_std, uniform_share
        self.unit = max(facts.sigma_data, 1e-3) if self.edm else 1.0  # data / unit has unit variance
        self.bound, self.bound_levels, self.ode_steps, self.probes = bound, bound_levels, ode_steps, probes
        alpha_bar = torch.from_numpy(path.alpha_bar) if isinstance(path, DiscretePath) else torch.empty(0)
        self.register_buffer("_alphas", alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("_sigmas", (1 - alpha_bar).sqrt().float(), persistent=False)

    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        return self._errors(batch, rng).mean(), {}

    def row_losses(self, batch: Batch, rng: Rng) -> Tensor:
        return self._errors(batch, rng).mean((1, 2, 3))

    def _errors(self, batch: Batch, rng: Rng) -> Tensor:
        """The weighted squared errors of the net's answer, (B, C, H, W)."""
        x = batch.x
        eps = rng.normal(x.shape) if batch.noise is None else batch.noise
        alphas, sigmas, net_time = self._levels(len(x), rng)
        label = drop_labels(batch.label, self.facts.classes, self.forget, rng)
        alpha, sigma = over(alphas.to(x.device), x), over(sigmas.to(x.device), x)
        seen = alpha * x + sigma * eps
        if self.edm:
            alpha, sigma, scale = self._unit_variance(alpha, sigma)
            seen = seen / scale
        unit = self.unit
        answer = self.net(seen, net_time.to(x.device), label)
        error = (answer.float() - target(self.predict, x / unit, eps, alpha, sigma)).square()
        if self.weight == "min_snr":
            snr = (alpha / (unit * sigma)).square()
            error = error * unit**2 * x0_sensitivity(self.predict, alpha, sigma).square() * snr.clamp(max=MIN_SNR)
        return error

    def _levels(self, rows: int, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """Draw training noise levels: alpha, sigma and the net's time input, each (rows,)."""
        if not self.edm:
            t = timesteps.shifted(rng.uniform((rows,)), self.shift)
            k = (t * self.T).long().clamp(max=self.T - 1).to(self._alphas.device)
            return self._alphas[k], self._sigmas[k], k.float() * (1000 / self.T)
        # The logit of u = sigma/(alpha + sigma) is log(sigma/alpha).
        t = timesteps.draw(
            "logit_normal", rows, rng, mean=self.log_mean, std=self.log_std, uniform_share=self.uniform_share
        )
        log_r = wide(t).logit().float()
        alpha = (1 + (2 * log_r).exp()).rsqrt()
        return alpha, alpha * log_r.exp(), EdmPath.net_time_of_log_ratio(log_r)

    def _unit_variance(self, alpha: Any, sigma: Any) -> tuple[Any, Any, Any]:
        """a, b and scale with x_t / scale = a (x/unit) + b eps and a^2 + b^2 = 1; for floats or tensors."""
        signal = alpha * self.unit
        scale = (signal * signal + sigma * sigma) ** 0.5
        return signal / scale, sigma / scale, scale

    def predict_x0(self, net: Callable[..., Tensor], x: Tensor, net_time: Time, alpha: Time, sigma: Time) -> Tensor:
        if not self.edm:
            return super().predict_x0(net, x, net_time, alpha, sigma)
        a, b, scale = self._unit_variance(alpha, sigma)
        return self.unit * super().predict_x0(net, x / scale, net_time, a, b)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, label: Label, rng: Rng) -> LogLikelihood:
        """The variational bound (maths/likelihood.py), or the ODE estimate."""
        if self.bound == "ode":
            return self.ode_likelihood(x, label, rng, self.ode_steps, self.probes)
        net = Guided(self.net, label, self.facts.classes)
        denoise = self.denoiser(net, clip=True)
        nats, stderr = likelihood.variational_bound(denoise, self.path, x, self.facts, rng, self.bound_levels)
        method = f"variational bound, {self.bound_levels} levels"
        return LogLikelihood(nats, "lower-bound", stderr, net.nfe, method)

    def path_options(self) -> dict[str, Any]:
        return {"unit": self.unit} if self.edm else {"schedule": self.schedule, "T": self.T}

    def stock_scheduler(self) -> tuple[str, dict[str, Any]] | None:
        if self.edm or self.T != 1000 or self.predict == "velocity":
            return None
        return "DDIMScheduler", {
            "beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "trailing",
            "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[self.schedule],
            "prediction_type": {"eps": "epsilon", "x": "sample", "v": "v_prediction"}[self.predict],
        }  # fmt: skip
