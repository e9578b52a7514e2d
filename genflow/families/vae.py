"""VAE: an encoder to a Gaussian posterior, a decoder with a probability for every grey level.

    -ELBO = KL(q(z | x) || N(0, I)) - E_q log P(x | z)
    P(x | z): for each pixel the mass of a logistic in x's bin (points: a Gaussian), its scale learned

References:
    Auto-Encoding Variational Bayes (Kingma, Welling, 2014)            https://arxiv.org/abs/1312.6114
    PixelCNN++ (Salimans et al., 2017), for the discretized logistic   https://arxiv.org/abs/1701.05517
    Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021), for a shared scale
    https://arxiv.org/abs/2006.13202
"""

import math
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.facts import Facts, Ports
from genflow.families.base import Family, LogLikelihood, Samples
from genflow.maths import likelihood
from genflow.maths.guidance import forget
from genflow.maths.seeds import Rng


class Vae(Family):
    """An autoencoder with a prior.

    Args:
        nets: {"encoder": x -> mean and log-variance of z (B, 2, latent), "decoder": z -> mean of x}.
        facts: of the data.
        latent: numbers in z.
        beta: weight of the KL term; only 1 gives a likelihood.
        warmup: share of training in which the KL term's weight rises from 0.
        forget: share of labels dropped while training, so that samples without a label work.
        posterior_samples: draws of z for the likelihood bound.
    """

    title = "VAE"
    objective = "evidence lower bound"
    steps = "1"
    likelihood = "lower-bound"
    players = ("model",)
    default_net: ClassVar[str] = "conv"

    def __init__(
        self,
        nets: dict[str, nn.Module],
        facts: Facts,
        *,
        latent: Annotated[int, Field(ge=1, le=4096)] = 32,
        beta: Annotated[float, Field(gt=0, le=100)] = 1.0,
        warmup: Annotated[float, Field(ge=0, le=1)] = 0.15,
        forget: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        posterior_samples: Annotated[int, Field(ge=1, le=10_000)] = 8,
    ) -> None:
        super().__init__(facts)
        self.model = nn.ModuleDict(nets)
        self.model.register_parameter("log_scale", nn.Parameter(torch.full((facts.shape[0], 1, 1), -2.0)))
        self.noise_shape = (latent,)
        self.beta, self.warmup, self.forget, self.posterior_samples = beta, warmup, forget, posterior_samples
        self._progress = 1.0

    @classmethod
    def ports(cls, facts: Facts, **options: object) -> dict[str, Ports]:
        latent = int(options["latent"])  # type: ignore[call-overload]
        return {"encoder": Ports(facts.shape, (2, latent)), "decoder": Ports((latent,), facts.shape)}

    def prepare(self, position: float) -> None:
        self._progress = min(1.0, position / self.warmup) if self.warmup else 1.0

    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        label = forget(batch.label, self.facts.classes, self.forget, rng)
        mean, log_variance = self._posterior(batch.x, label)
        z = mean + (0.5 * log_variance).exp() * rng.normal(mean.shape).to(mean.device)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        nats = self._log_p(batch.x, z, label)
        loss = (self._progress * self.beta * kl - nats).mean() / self.facts.dims
        return loss, {"kl": kl.mean(), "reconstruction": -nats.mean()}

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        label: Tensor,
        rng: Rng,
        *,
        temperature: Annotated[float, Field(gt=0, le=2)] = 1.0,
        draw: bool = False,
    ) -> Samples:
        x = self.model["decoder"](temperature * noise, None, label).float()
        if draw:
            u = rng.uniform(x.shape).clamp(1e-5, 1 - 1e-5)
            spread = torch.special.ndtri(u) if self.facts.is_points else torch.logit(u)
            x = x + self._log_scale().exp() * spread
        return Samples(x if self.facts.is_points else x.clamp(-1, 1), 1)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, label: Tensor, rng: Rng) -> LogLikelihood:
        """The ELBO, averaged over draws of z; their spread is its standard error."""
        mean, log_variance = self._posterior(x, label)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        draws = []
        for _ in range(self.posterior_samples):
            z = mean + (0.5 * log_variance).exp() * rng.normal(mean.shape).to(mean.device)
            draws.append((self._log_p(x, z, label) - kl).double())
        stacked = torch.stack(draws)
        stderr = stacked.std(0) / len(draws) ** 0.5 if len(draws) > 1 else torch.zeros_like(stacked[0])
        return LogLikelihood(stacked.mean(0), "lower-bound", stderr, 1 + self.posterior_samples, "ELBO")

    @torch.no_grad()
    def encode(self, x: Tensor, label: Tensor, rng: Rng) -> Tensor:
        return self._posterior(x, label)[0]

    def _posterior(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.model["encoder"](x, None, label).float().unbind(1)
        return mean, log_variance.clamp(-12, 6)

    def _log_scale(self) -> Tensor:
        return self.model.get_parameter("log_scale").clamp(min=-7)

    def _log_p(self, x: Tensor, z: Tensor, label: Tensor) -> Tensor:
        """log P(x | z), in nats (B,)."""
        mean = self.model["decoder"](z, None, label).float()
        log_scale = self._log_scale()
        if self.facts.levels is None:
            density = -0.5 * ((x - mean) / log_scale.exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)
            return likelihood.discrete_nats(density.flatten(1).sum(1), self.facts)
        mass = likelihood.discretized(F.logsigmoid, x, mean, log_scale, self.facts.levels)
        return mass.flatten(1).sum(1)
