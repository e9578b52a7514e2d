"""VAE: an encoder to a Gaussian posterior, a decoder with a probability for every grey level, a prior fitted after.

    -ELBO  = KL(q(z | x) || N(0, I)) - E_q log P(x | z)
    IWAE_k = E log 1/k sum_i w_i,   w_i = P(x | z_i) p(z_i) / q(z_i | x),   z_i ~ q        ELBO = IWAE_1 <= IWAE_k
    P(x | z): for each pixel the mass of a logistic or a Gaussian in x's bin (points: a Gaussian), its scale learned

Where a Gaussian's scale comes to rest it is the root of the mean squared error: sigma-VAE's optimal sigma.

Samples are drawn from the prior that was fitted to the codes of the data after training, and the bound is of the
same prior, because a likelihood belongs to the model that samples. Training knows N(0, I) alone.

References:
    Auto-Encoding Variational Bayes (Kingma, Welling, 2014)            https://arxiv.org/abs/1312.6114
    Importance Weighted Autoencoders (Burda et al., 2016)              https://arxiv.org/abs/1509.00519
    PixelCNN++ (Salimans et al., 2017), for the discretized logistic   https://arxiv.org/abs/1701.05517
    Simple and Effective VAE Training with Calibrated Decoders, sigma-VAE (Rybkin et al., 2021)
    https://arxiv.org/abs/2006.13202
"""

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.facts import Facts, Ports
from genflow.families.base import Family, LogLikelihood, Samples
from genflow.maths import likelihood, mixture
from genflow.maths.guidance import forget
from genflow.maths.seeds import Rng

ROWS = 20_000  # of the training data, that the prior is fitted to
ROWS_WITHOUT = 5_000  # of them, for the prior without a label
LARGEST = 2**28  # numbers in the mixture's covariances


class Vae(Family):
    """An autoencoder with a prior.

    Args:
        nets: {"encoder": x -> mean and log-variance of z (B, 2, latent), "decoder": z -> mean of x, and its scale}.
        facts: of the data.
        latent: numbers in z.
        beta: weight of the KL term while training; with any, the bound that is reported is a bound.
        warmup: share of training in which the KL term's weight rises from 0.
        forget: share of labels dropped while training, so that samples without a label work.
        decoder: the density whose mass in a bin is the probability of its grey level.
        scale: of that density: one number a channel, or one a pixel that the decoder tells.
        prior: what z is sampled from: N(0, I), or a mixture of Gaussians a label, fitted after training.
        components: Gaussians a label.
        bound: the likelihood's: elbo averages the draws of z, iwae weighs them.
        posterior_samples: draws of z for the bound, its k.
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
        decoder: Literal["logistic", "gaussian"] = "logistic",
        scale: Literal["shared", "pixel"] = "shared",
        prior: Literal["normal", "mixture"] = "mixture",
        components: Annotated[int, Field(ge=1, le=1000)] = 20,
        bound: Literal["elbo", "iwae"] = "elbo",
        posterior_samples: Annotated[int, Field(ge=1, le=10_000)] = 8,
    ) -> None:
        super().__init__(facts)
        self.model = nn.ModuleDict(nets)
        self.model.register_parameter("log_scale", nn.Parameter(torch.full((facts.shape[0], 1, 1), -2.0)))
        self.noise_shape = (latent,)
        self.latent, self.beta, self.warmup, self.forget = latent, beta, warmup, forget
        self.gaussian, self.own_scale = decoder == "gaussian" or facts.is_points, scale == "pixel"
        self.bound, self.posterior_samples, self.components = bound, posterior_samples, components
        self.prior: mixture.Mixture | None = None
        if prior == "mixture":
            # A mixture for each label and one for none; each of the latter's parts is a class, too.
            total = components * max(1, 2 * facts.classes)
            if total * latent**2 > LARGEST:
                raise UsageError(
                    f"{total} components of {latent} x {latent} numbers are too many for the prior",
                    "use family.prior=normal, or fewer family.components",
                )
            self.prior = mixture.Mixture(facts.classes + 1, total, latent)
            self.noise_shape = (latent + 1,)  # the last number chooses the component
        self._progress = 1.0

    @classmethod
    def ports(cls, facts: Facts, **options: object) -> dict[str, Ports]:
        latent, (C, H, W) = int(options["latent"]), facts.shape  # type: ignore[call-overload]
        answers = (2 * C if options["scale"] == "pixel" else C, H, W)
        return {"encoder": Ports(facts.shape, (2, latent)), "decoder": Ports((latent,), answers)}

    def prepare(self, position: float) -> None:
        self._progress = min(1.0, position / self.warmup) if self.warmup else 1.0
        if self.prior is not None:
            self.prior.fitted.fill_(False)  # the weights move, and the codes with them

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
        z = temperature * noise[:, : self.latent]
        if self.prior is not None and self.prior.fitted:
            choice = torch.special.ndtr(noise[:, self.latent].double()).clamp(max=1 - 1e-9)
            z = self.prior.draw(z, choice, label)
        x, log_scale = self._decoded(z, label)
        if draw:
            u = rng.uniform(x.shape).clamp(1e-5, 1 - 1e-5)
            x = x + log_scale.exp() * (torch.special.ndtri(u) if self.gaussian else torch.logit(u))
        return Samples(x if self.facts.is_points else x.clamp(-1, 1), 1)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, label: Tensor, rng: Rng) -> LogLikelihood:
        """The bound from k draws of z, under the prior that is sampled from."""
        k = self.posterior_samples
        mean, log_variance = (part.double() for part in self._posterior(x, label))
        fitted = self.prior if self.prior is not None and self.prior.fitted else None
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        draws = []
        for _ in range(k):
            eps = rng.normal(mean.shape).double().to(mean.device)
            z = mean + (0.5 * log_variance).exp() * eps
            nats = self._log_p(x, z.float(), label).double()
            if self.bound == "elbo" and fitted is None:
                draws.append(nats - kl)  # N(0, I) needs no draws for this term
                continue
            log_prior = likelihood.standard_normal(z) if fitted is None else fitted.log_density(z, label)
            draws.append(nats + log_prior - likelihood.standard_normal(eps) + 0.5 * log_variance.sum(1))
        nats, stderr = likelihood.averaged(torch.stack(draws), weighed=self.bound == "iwae")
        method = ("ELBO" if self.bound == "elbo" else f"IWAE, k = {k}") + (", mixture prior" if fitted else "")
        return LogLikelihood(nats, "lower-bound", stderr, 1 + k, method)

    @torch.no_grad()
    def encode(self, x: Tensor, label: Tensor, rng: Rng) -> Tensor:
        """The posterior's mean (B, latent)."""
        return self._posterior(x, label)[0]

    @torch.no_grad()
    def decode(self, code: Tensor, label: Tensor, rng: Rng) -> Tensor:
        x = self._decoded(code, label)[0]
        return x if self.facts.is_points else x.clamp(-1, 1)

    @torch.no_grad()
    def finish(self, data: Callable[[int], Batch]) -> None:
        """Fit the prior: class by class, once with labels and once without."""
        if self.prior is None:
            return
        want, seen, parts = min(ROWS, self.facts.splits.get("train", ROWS_WITHOUT)), 0, list[Batch]()
        while seen < want:
            parts.append(data(len(parts)))
            seen += len(parts[-1])
        classes = self.facts.classes
        self.prior.log_weight.fill_(-math.inf)
        place = 0
        for known in [True, False] if classes else [True]:
            x = torch.cat([part.x for part in parts])[: want if known else ROWS_WITHOUT]
            label = torch.cat([part.label for part in parts])[: len(x)]
            codes = [
                self._posterior(some, of if known else torch.full_like(of, classes))
                for some, of in zip(x.split(256), label.split(256), strict=True)
            ]
            mean, log_variance = (torch.cat(part) for part in zip(*codes, strict=True))
            for one in range(max(1, classes)):
                rows = (label == one).nonzero()[:, 0]
                if len(rows):
                    generator = torch.Generator().manual_seed(one)
                    w, mu, root = mixture.fit(mean[rows], log_variance[rows].exp(), self.components, generator)
                    own = slice(place, place + len(w))
                    self.prior.mean[own], self.prior.root[own] = mu.float(), root.float()
                    share = 1.0 if known else len(rows) / len(x)
                    self.prior.log_weight[one if known else classes, own] = (share * w).log().float()
                place += self.components
        self.prior.fitted.fill_(True)

    def _posterior(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.model["encoder"](x, None, label).float().unbind(1)
        return mean, log_variance.clamp(-12, 6)

    def _decoded(self, z: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The location (B, C, H, W) of P(x | z), and the log of its scale."""
        answer = self.model["decoder"](z, None, label).float()
        log_scale = self.model.get_parameter("log_scale")
        if self.own_scale:
            answer, own = answer.chunk(2, 1)
            log_scale = log_scale + own
        return answer, log_scale.clamp(-7, 3)

    def _log_p(self, x: Tensor, z: Tensor, label: Tensor) -> Tensor:
        """log P(x | z), in nats (B,)."""
        mean, log_scale = self._decoded(z, label)
        if self.facts.levels is None:
            density = -0.5 * ((x - mean) / log_scale.exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)
            return likelihood.discrete_nats(density.flatten(1).sum(1), self.facts)
        log_cdf = torch.special.log_ndtr if self.gaussian else F.logsigmoid
        return likelihood.discretized(log_cdf, x, mean, log_scale, self.facts.levels).flatten(1).sum(1)
