"""Flow matching: learn the velocity that transports data to noise along straight lines.

    x_t = (1 - t) x + t eps,   eps ~ N(0, I)          t = 0 is data, t = 1 is noise
    u_t = d x_t / dt = eps - x
    loss = E ||u_net(x_t, t) - u_t||^2                sampling integrates u_net from t = 1 back to t = 0

References:
    Flow Matching for Generative Modeling (Lipman et al., 2023)     https://arxiv.org/abs/2210.02747
    Flow Straight and Fast: Rectified Flow (Liu et al., 2022)       https://arxiv.org/abs/2209.03003
    Scaling Rectified Flow Transformers, SD3 (Esser et al., 2024)   https://arxiv.org/abs/2403.03206
"""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.families.base import LogLikelihood
from genflow.families.gaussian import Gaussian, Velocity, latent_shift
from genflow.maths import timesteps
from genflow.maths.guidance import Guided, drop_labels
from genflow.maths.paths import StraightPath, over
from genflow.maths.rng import Rng
from genflow.specs import DataSpec
from genflow.text import Label


class FlowMatching(Gaussian):
    """A net that predicts the velocity on the straight path.

    Args:
        nets: {"net": predicts u from (x_t (B, C, H, W), 1000 t (B,), label (B,))}.
        facts: of the data.
        density: the distribution of training times (maths/timesteps.py).
        logit_mean: mean of the logit-normal density; above 0 means more noise. A shift s is the mean ln s. null: the
            logarithm of `gaussian.latent_shift`, which is 0 for pictures and points.
        logit_std: standard deviation of the logit-normal density.
        at_noise: share of rows with t = 1 exactly, where sampling in a single step starts.
        forget: share of labels dropped during training, so that guidance works.
        ode_steps: midpoint steps of the likelihood; four times as many for points.
        probes: trace probes of the likelihood.
    """

    title = "Flow matching"
    objective = "velocity regression on straight paths"
    likelihood = "ode-estimate"

    def __init__(
        self,
        nets: dict[str, nn.Module],
        facts: DataSpec,
        *,
        density: Literal["uniform", "logit_normal", "u_shaped"] = "logit_normal",
        logit_mean: Annotated[float, Field(ge=-5, le=5)] | None = None,
        logit_std: Annotated[float, Field(gt=0, le=5)] = 1.0,
        at_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        forget: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        ode_steps: Annotated[int, Field(ge=2, le=1000)] = 20,
        probes: Annotated[int, Field(ge=1, le=100)] = 2,
    ) -> None:
        super().__init__(nets["net"], facts, StraightPath(), "velocity")
        self.density: timesteps.Density = density
        self.logit_mean = math.log(latent_shift(facts)) if logit_mean is None else logit_mean
        self.logit_std, self.at_noise, self.forget = logit_std, at_noise, forget
        self.ode_steps, self.probes = ode_steps, probes

    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        return self._errors(batch, rng).mean(), {}

    def row_losses(self, batch: Batch, rng: Rng) -> Tensor:
        return self._errors(batch, rng).mean((1, 2, 3))

    def _errors(self, batch: Batch, rng: Rng) -> Tensor:
        """The squared errors of the velocity, (B, C, H, W)."""
        x = batch.x
        eps = rng.normal(x.shape) if batch.noise is None else batch.noise  # with given noise this is reflow
        t = timesteps.draw(self.density, len(x), rng, mean=self.logit_mean, std=self.logit_std).to(x.device)
        if self.at_noise:
            t = t.masked_fill((rng.uniform((len(x),)) < self.at_noise).to(x.device), 1.0)
        label = drop_labels(batch.label, self.facts.classes, self.forget, rng)
        u = self.net(torch.lerp(x, eps, over(t, x)), 1000 * t, label)
        return (u.float() - (eps - x)).square()

    def log_likelihood(self, x: Tensor, label: Label, rng: Rng) -> LogLikelihood:
        return self.ode_likelihood(x, label, rng, self.ode_steps, self.probes)

    def velocity(self, net: Guided) -> Velocity:
        return lambda y, u: net(y, 1000 * u)  # the net's output, which is defined at u = 0, too

    def stock_scheduler(self) -> tuple[str, dict[str, Any]] | None:
        return "FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, "shift": 1.0}
