"""VAE: a Gaussian encoder, a decoder that gives every grey level a probability, and a prior fitted after training.

    -ELBO  = KL(q(z | x) || N(0, I)) - E_q log P(x | z)
    IWAE_k = E log 1/k sum_i w_i,   w_i = P(x | z_i) p(z_i) / q(z_i | x),   z_i ~ q        ELBO = IWAE_1 <= IWAE_k
    P(x | z): for each pixel the mass of a logistic or a Gaussian in x's bin (points: a Gaussian), its scale learned

The learned scale of a Gaussian converges to the root mean squared error, the optimal sigma of sigma-VAE. On latents the
scale is at least 1, so the loss is a squared error. There, nats of a learned scale go to ever smaller errors of what is
easy, such as the mean colour of a block, and the rest of the picture is not learned.

Training uses the prior N(0, I). After training a prior is fitted to the codes of the data, and samples are drawn from
it. The reported bound uses the fitted prior, because a likelihood must belong to the model that samples.

References:
    Auto-Encoding Variational Bayes (Kingma, Welling, 2014)            https://arxiv.org/abs/1312.6114
    Importance Weighted Autoencoders (Burda et al., 2016)              https://arxiv.org/abs/1509.00519
    PixelCNN++ (Salimans et al., 2017), for the discretized logistic   https://arxiv.org/abs/1701.05517
    Simple and Effective VAE Training with Calibrated Decoders, sigma-VAE (Rybkin et al., 2021)
    https://arxiv.org/abs/2006.13202
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.families.base import Call, Exported, Family, Kind, LogLikelihood, Samples
from genflow.maths import likelihood, mixture, timesteps
from genflow.maths.guidance import cat_labels, class_numbers, drop_labels, no_label
from genflow.maths.paths import StraightPath, uniform_times
from genflow.maths.rng import Rng, SampleRng
from genflow.maths.samplers import SAMPLERS
from genflow.maths.wide import wide
from genflow.specs import DataSpec, NetSpec
from genflow.text import Label

# Training rows to which the prior is fitted; 20,000 rows change the Frechet distance by less than 0.1.
PRIOR_ROWS = 10_000
PRIOR_ROWS_UNLABELLED = 2_500  # the first of these rows, for the prior without a label
MAX_COVARIANCE_ENTRIES = 2**28  # the largest number of entries in the mixture's covariances
LEAST_LOG_SCALE = -7.0  # of pictures and points; far below the half width of one of 256 levels, ln(1/256) = -5.5
FLOW_STEPS = 20  # steps of the flow prior from noise to a code, and back


class Vae(Family):
    """A variational autoencoder.

    Args:
        nets: {"encoder": x -> mean and log-variance of z (B, 2, latent), "decoder": z -> mean of x, and its scale}.
        facts: of the data.
        latent: the numbers in z; limited to twice the numbers in a sample, which matters for points and tiny pictures.
        beta: weight of the KL term during training; the reported likelihood is a bound for every beta.
        warmup: share of training in which the weight of the KL term rises from 0.
        forget: share of labels dropped during training, so that samples without a label work.
        decoder: the density whose mass in a bin is the probability of the grey level.
        scale: the scale of that density: one learned number per channel (shared), or one per pixel from the decoder.
        min_scale: the smallest scale; null: 1 for latents, and e^-7 for everything else.
        prior: the distribution from which z is sampled: N(0, I); a mixture of Gaussians per label, fitted after
            training; or a small flow (an MLP trained by flow matching on the codes, at the same time as the model).
        components: Gaussians per label.
        bound: the reported likelihood: elbo averages the log-weights of the draws of z, iwae averages the weights.
        posterior_samples: draws of z for the bound, its k.

    Raises:
        UsageError: bound is iwae with a flow prior, or the mixture has too many numbers.
    """

    title = "VAE"
    objective = "evidence lower bound"
    steps = "1"
    likelihood = "lower-bound"
    players: tuple[str, ...] = ("model",)
    shardable = False
    default_net: ClassVar[str] = "conv"

    def __init__(
        self,
        nets: dict[str, nn.Module],
        facts: DataSpec,
        *,
        latent: Annotated[int, Field(ge=1, le=4096)] = 32,
        beta: Annotated[float, Field(gt=0, le=100)] = 1.0,
        warmup: Annotated[float, Field(ge=0, le=1)] = 0.15,
        forget: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        decoder: Literal["logistic", "gaussian"] = "logistic",
        scale: Literal["shared", "pixel"] = "shared",
        min_scale: Annotated[float, Field(gt=0, le=10)] | None = None,
        prior: Literal["normal", "mixture", "flow"] = "mixture",
        components: Annotated[int, Field(ge=1, le=1000)] = 20,
        bound: Literal["elbo", "iwae"] = "elbo",
        posterior_samples: Annotated[int, Field(ge=1, le=10_000)] = 8,
    ) -> None:
        super().__init__(facts)
        self.model = nn.ModuleDict({name: nets[name] for name in ("encoder", "decoder")})
        default = 0.0 if facts.is_latents else LEAST_LOG_SCALE
        self.least_log_scale = math.log(min_scale) if min_scale else default
        first = max(-2.0, self.least_log_scale)  # a scale below the least has no gradient
        self.model.register_parameter("log_scale", nn.Parameter(torch.full((facts.shape[0], 1, 1), first)))
        latent = _latent_size(latent, facts)
        self.noise_shape = (latent,)
        self.latent, self.beta, self.warmup, self.forget = latent, beta, warmup, forget
        self.gaussian, self.pixel_scale = decoder == "gaussian" or not facts.bounded, scale == "pixel"
        self.bound, self.posterior_samples, self.components = bound, posterior_samples, components
        self.classes = 0 if facts.text else facts.classes  # one mixture serves all captions
        self.mixture: mixture.Mixture | None = None
        self.prior = nets.get("prior")
        if self.prior is not None:
            self.players = ("model", "prior")
            if bound == "iwae":
                raise UsageError("family.bound=iwae needs a prior whose density is exact", "use family.prior=mixture")
        if prior == "mixture":
            # One mixture per label, and one for "no label", which has separate components for every class.
            total = components * max(1, 2 * self.classes)
            if total * latent**2 > MAX_COVARIANCE_ENTRIES:
                raise UsageError(
                    f"{total} components of {latent} x {latent} numbers are too many for the prior",
                    "use family.prior=normal, or fewer family.components",
                )
            self.mixture = mixture.Mixture(self.classes + 1, total, latent)
            self.noise_shape = (latent + 1,)  # the last number selects the component
        self._progress = 1.0

    @classmethod
    def ports(cls, facts: DataSpec, **options: object) -> dict[str, NetSpec]:
        latent, (C, H, W) = _latent_size(int(options["latent"]), facts), facts.shape  # type: ignore[call-overload]
        outputs = (2 * C if options["scale"] == "pixel" else C, H, W)
        found = {"encoder": NetSpec(facts.shape, (2, latent)), "decoder": NetSpec((latent,), outputs)}
        if options["prior"] == "flow":
            found["prior"] = NetSpec((latent,), (latent,), time=True, net="mlp")
        return found

    def prepare(self, position: float) -> None:
        self._progress = min(1.0, position / self.warmup) if self.warmup else 1.0
        if self.mixture is not None:
            self.mixture.clear()  # the codes change with the weights

    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        z, label, mean, log_variance = self._latent(batch, rng)
        if player == "prior":
            return self._flow_loss(z.detach(), label, rng), {}
        kl, nats = self._bound(batch, z, label, mean, log_variance)
        loss = (self._progress * self.beta * kl - nats).mean() / self.facts.dims
        return loss, {"kl": kl.mean(), "reconstruction": -nats.mean()}

    def row_losses(self, batch: Batch, rng: Rng) -> Tensor:
        kl, nats = self._bound(batch, *self._latent(batch, rng))
        return (self._progress * self.beta * kl - nats) / self.facts.dims

    def _latent(self, batch: Batch, rng: Rng) -> tuple[Tensor, Label, Tensor, Tensor]:
        """A draw of the posterior, the labels that it was conditioned on, and its mean and log-variance."""
        label = drop_labels(batch.label, self.facts.classes, self.forget, rng)
        mean, log_variance = self._posterior(batch.x, label)
        return mean + (0.5 * log_variance).exp() * rng.normal(mean.shape), label, mean, log_variance

    def _bound(
        self, batch: Batch, z: Tensor, label: Label, mean: Tensor, log_variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The divergence from the prior and the nats of the pictures, (B,) each."""
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return kl, self._log_p(batch.x, z, label)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        label: Label,
        rng: Rng,
        *,
        temperature: Annotated[float, Field(gt=0, le=2)] = 1.0,
        draw: bool = False,
    ) -> Samples:
        """Draw a latent and decode it.

        Args:
            noise: (B, D, ...) of the latent.
            label: (B,).
            rng: source of the decoder's noise.
            temperature: factor of the latent's noise.
            draw: whether to draw from the decoder's distribution of pixels; false: its mean.
        """
        z = self._drawn_latent(temperature * noise[:, : self.latent], noise, label, rng)
        x, log_scale = self._output_distribution(z, label)
        if draw:
            u = rng.uniform(x.shape).clamp(1e-5, 1 - 1e-5)
            x = x + log_scale.exp() * (torch.special.ndtri(u) if self.gaussian else torch.logit(u))
        nfe = 1 + FLOW_STEPS * (self.prior is not None)
        return Samples(x.clamp(-1, 1) if self.facts.bounded else x, nfe)

    def _drawn_latent(
        self, z: Tensor, noise: Tensor, label: Label, rng: Rng, limits: Tensor | None = None
    ) -> Tensor:
        """The latent (B, D) of the prior for standard normal z (B, D); `limits` are those of `Mixture.limits`."""
        if self.mixture is not None:
            score, number = wide(noise[:, self.latent]), class_numbers(label, self.classes)
            if limits is None:
                choice = torch.special.ndtr(score).clamp(max=1 - 1e-9)
                drawn = self.mixture.draw(z, choice, number)
            else:
                k = (limits[number] <= score[:, None]).sum(1).clamp(max=limits.shape[1] - 1)
                drawn = self.mixture.component(k, z)
            z = torch.where(self.mixture.fitted, drawn, z)  # no branch, for torch.export
        elif self.prior is not None:
            path, grid = StraightPath(), uniform_times(FLOW_STEPS)
            z = SAMPLERS["ab2"].run(lambda y, t: y - t * self._velocity(y, t, label), path, z, grid, rng)
        return z

    def exported(self, options: dict[str, Any]) -> Exported:
        """One pass; the mean of the decoder's distribution, because a program draws nothing."""
        limits = self.mixture.limits() if self.mixture is not None else None

        def run(noise: Tensor, label: Label) -> Tensor:
            z = options["temperature"] * noise[:, : self.latent]
            x, _ = self._output_distribution(self._drawn_latent(z, noise, label, SampleRng([], "none"), limits), label)
            return x.clamp(-1, 1) if self.facts.bounded else x

        note = "The run draws the noise of its pixels, too; this is their mean." if options["draw"] else ""
        return Exported("one_pass", {"net": Call(run, {"noise": self.noise_shape})}, note=note)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, label: Label, rng: Rng) -> LogLikelihood:
        """The bound from k draws of z, under the prior from which samples are drawn."""
        k, kind, nfe = self.posterior_samples, "lower-bound", 1 + self.posterior_samples
        mean, log_variance = (wide(part) for part in self._posterior(x, label))
        fitted = self.mixture if self.mixture is not None and self.mixture.fitted else None
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        draws = []
        for _ in range(k):
            eps = wide(rng.normal(mean.shape))
            z = mean + (0.5 * log_variance).exp() * eps
            nats = wide(self._log_p(x, z.float(), label))
            if fitted is not None:
                log_prior = fitted.log_density(z, class_numbers(label, self.classes))
            elif self.prior is not None:
                velocity = partial(self._velocity, label=label)
                log_prior, _, cost = likelihood.ode_log_density(velocity, z.float(), rng, steps=FLOW_STEPS)
                nfe += cost
            elif self.bound == "elbo":
                draws.append(nats - kl)  # for N(0, I) the KL term has a closed form
                continue
            else:
                log_prior = likelihood.standard_normal(z)
            draws.append(nats + log_prior - likelihood.standard_normal(eps) + 0.5 * log_variance.sum(1))
        nats, stderr = likelihood.bound_from_draws(torch.stack(draws), iwae=self.bound == "iwae")
        method = "ELBO" if self.bound == "elbo" else f"IWAE, k = {k}"
        if fitted is not None:
            method += ", mixture prior"
        elif self.prior is not None:  # the prior's density is an estimate, so the bound is one, too
            method, kind = f"ELBO, flow prior by midpoint, {FLOW_STEPS} steps", "ode-estimate"
        return LogLikelihood(nats, cast(Kind, kind), stderr, nfe, method)

    @property
    def code_shape(self) -> tuple[int, ...]:
        return (self.latent,)

    @torch.no_grad()
    def encode(self, x: Tensor, label: Label, rng: Rng) -> Tensor:
        """The mean of the posterior q(z | x), (B, latent)."""
        return self._posterior(x, label)[0]

    @torch.no_grad()
    def decode(self, code: Tensor, label: Label, rng: Rng) -> Tensor:
        x = self._output_distribution(code, label)[0]
        return x.clamp(-1, 1) if self.facts.bounded else x

    @torch.no_grad()
    def finish(self, data: Callable[[int], Batch]) -> None:
        """Fit the mixture prior for each class: once to codes encoded with labels, and once to codes without."""
        if self.mixture is None:
            return
        want, seen, parts = min(PRIOR_ROWS, self.facts.splits.get("train", PRIOR_ROWS_UNLABELLED)), 0, list[Batch]()
        while seen < want:
            parts.append(data(len(parts)))
            seen += len(parts[-1])
        classes, first = self.classes, 0
        self.mixture.clear()
        for known in [True, False] if classes else [True]:
            x = torch.cat([part.x for part in parts])[: want if known else PRIOR_ROWS_UNLABELLED]
            label = cat_labels([part.label for part in parts])[: len(x)]
            number = class_numbers(label, classes)
            codes = [
                self._posterior(some, of if known else no_label(of, classes))
                for some, of in zip(x.split(64), label.split(64), strict=True)
            ]
            mean, log_variance = (torch.cat(part) for part in zip(*codes, strict=True))
            for one in range(max(1, classes)):
                rows = (number == one).nonzero()[:, 0]
                m, v = mean[rows], log_variance[rows].exp()
                if not len(rows):  # a class that does not occur among the rows gets N(0, I)
                    m, v = mean.new_zeros(1, self.latent), mean.new_ones(1, self.latent)
                found = mixture.fit(m, v, self.components, torch.Generator().manual_seed(one))
                share = 1.0 if known else len(rows) / len(x)
                self.mixture.set_components(one if known else classes, first, share, *found)
                first += self.components

    def _flow_loss(self, z: Tensor, label: Label, rng: Rng) -> Tensor:
        """The flow matching loss of the flow prior on codes z (B, latent): E |v(z_t, t) - (eps - z)|^2."""
        eps, t = rng.normal(z.shape), timesteps.draw("uniform", len(z), rng).to(z.device)
        v = self._velocity(torch.lerp(z, eps, t[:, None]), t, label)
        return (v.float() - (eps - z)).square().mean()

    def _velocity(self, y: Tensor, t: float | Tensor, label: Label) -> Tensor:
        """The velocity v(y, t) of the flow prior, (B, latent), for y (B, latent)."""
        assert self.prior is not None
        time = torch.as_tensor(1000 * t, dtype=torch.float32, device=y.device).expand(len(y))
        return self.prior(y, time, label)

    def _posterior(self, x: Tensor, label: Label) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.model["encoder"](x, None, label).float().unbind(1)
        return mean, log_variance.clamp(-12, 6)

    def _output_distribution(self, z: Tensor, label: Label) -> tuple[Tensor, Tensor]:
        """The location (B, C, H, W) of P(x | z), and the log of its scale, broadcast to it."""
        answer = self.model["decoder"](z, None, label).float()
        log_scale = self.model.get_parameter("log_scale")
        if self.pixel_scale:
            answer, own = answer.chunk(2, 1)
            log_scale = log_scale + own
        return answer, log_scale.clamp(self.least_log_scale, 3)

    def _log_p(self, x: Tensor, z: Tensor, label: Label) -> Tensor:
        """log P(x | z) in nats, (B,)."""
        mean, log_scale = self._output_distribution(z, label)
        if self.facts.levels is None:
            density = -0.5 * ((x - mean) / log_scale.exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)
            return likelihood.discrete_nats(density.flatten(1).sum(1), self.facts)
        log_cdf = torch.special.log_ndtr if self.gaussian else F.logsigmoid
        return likelihood.discretized(log_cdf, x, mean, log_scale, self.facts.levels).flatten(1).sum(1)


def _latent_size(latent: int, facts: DataSpec) -> int:
    return min(latent, 2 * math.prod(facts.shape))
