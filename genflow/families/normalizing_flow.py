"""Normalizing flow: an invertible net between data and N(0, I), trained by its exact likelihood.

    log p(x) = log N(z; 0, I) + log |det dz/dx|,    z = f(x; label)

Grey levels are spread over their bins, x = 2 (k + u)/K - 1 with u ~ U[0, 1). Then [-1, 1] is mapped to the real line:

    y = logit(m + (1 - 2 m) (x + 1)/2) / SPREAD,   m = MARGIN

The logit stretches the interval near black. The many pixels that are exactly black would otherwise form a spike, which
a net models poorly. Points are not transformed.

On latents the net learns the density of x + noise eps. A flow models a sharp density poorly, in particular that of a
few thousand rows, and a decoder hardly shows the noise.

References:
    Normalizing Flows are Capable Generative Models, TarFlow (Zhai et al., 2024)   https://arxiv.org/abs/2412.06329
    STARFlow (Gu et al., 2025), for the noise of latents                            https://arxiv.org/abs/2506.06276
    Density estimation using Real NVP (Dinh et al., 2017), section 4.1, for logit  https://arxiv.org/abs/1605.08803
    A note on the evaluation of generative models (Theis et al., 2016)             https://arxiv.org/abs/1511.01844
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.families.base import Call, Exported, Family, LogLikelihood, Samples, patch_of_latents
from genflow.maths import likelihood
from genflow.maths.guidance import cat_labels, drop_labels, no_label
from genflow.maths.rng import Rng
from genflow.maths.wide import wide
from genflow.specs import DataSpec, NetSpec
from genflow.text import Label

MARGIN = 1e-5  # added at both ends of the range from black to white; small compared with a bin, 4e-3 at 256 levels
SPREAD = 3.0  # the approximate standard deviation of the logits of pictures
# The default temperature of pictures, because a small flow models texture poorly. On Fashion-MNIST (300 CPU seconds)
# temperatures of 1.0, 0.9 and 0.8 gave Frechet distances of 7.7, 4.1 and 3.5 with a recall of 0.80, 0.79 and 0.74.
PICTURE_TEMPERATURE = 0.8
LATENT_TEMPERATURE = 0.5  # docs/decisions/0023-a-linear-code.md
LATENT_NOISE = 0.3  # as in STARFlow


@runtime_checkable
class PatchInverse(Protocol):
    """A net of autoregressive blocks that are inverted patch by patch; see `genflow.nets.tarflow.TarFlow`."""

    block_count: int
    patch: int
    grid: tuple[int, int]
    cache_shape: tuple[int, ...]

    def step(
        self, block: int, z: Tensor, before: Tensor, i: Tensor, keys: Tensor, values: Tensor,
        labels: Sequence[Label], guidance: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """One patch of the inverse of a block, and the keys and values with its own."""


class NormalizingFlow(Family):
    """An invertible net trained by maximum likelihood.

    Args:
        nets: {"net": maps (x (B, C, H, W), None, label (B,)) to z (B, C, H, W) and log |det| (B,), and back}.
        facts: of the data.
        forget: share of labels dropped during training, so that samples without a label work.
        noise: standard deviation of the noise that training adds; null: 0.3 for latents, none otherwise.
        draws: draws of the dequantization noise u for a picture's likelihood; points need one.
    """

    title = "Normalizing flow"
    rows = 16  # 4 and 12 rows round differently from 8 and 16
    objective = "exact likelihood"
    steps = "1"
    likelihood = "exact-dequantized"
    default_net = "tarflow"
    drawing = 8.0  # its inverse computes the patches one after another

    def __init__(
        self,
        nets: dict[str, nn.Module],
        facts: DataSpec,
        *,
        forget: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        noise: Annotated[float, Field(ge=0, le=10)] | None = None,
        draws: Annotated[int, Field(ge=1, le=10_000)] = 4,
    ) -> None:
        super().__init__(facts)
        self.net = nets["net"]
        self.forget, self.draws = forget, draws
        self.noise = noise if noise is not None else LATENT_NOISE if facts.is_latents else 0.0
        self.temperature = PICTURE_TEMPERATURE if facts.bounded else LATENT_TEMPERATURE if facts.is_latents else 1.0

    @classmethod
    def ports(cls, facts: DataSpec, **options: object) -> dict[str, NetSpec]:
        return {"net": NetSpec(facts.shape, facts.shape, flow=True)}

    @classmethod
    def default_net_for(cls, facts: DataSpec) -> dict[str, Any]:
        if facts.is_latents:
            return {"kind": cls.default_net, "patch": patch_of_latents(facts), "depth": 2}
        return {"kind": "spline" if facts.is_points else cls.default_net}

    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        nats = self._training_nats(batch, rng).mean()
        metric = "bits_per_dim" if self.facts.bounded else "nats"
        return -nats / self.facts.dims, {metric: -nats / (1 if metric == "nats" else self.facts.dims * math.log(2))}

    def row_losses(self, batch: Batch, rng: Rng) -> Tensor:
        return -self._training_nats(batch, rng) / self.facts.dims

    def _training_nats(self, batch: Batch, rng: Rng) -> Tensor:
        x = likelihood.dequantize(batch.x, self.facts, rng)
        if self.noise:
            x = x + self.noise * rng.normal(x.shape)
        return self._nats(x, drop_labels(batch.label, self.facts.classes, self.forget, rng))

    def log_density(self, x: Tensor, label: Label) -> Tensor:
        """log p(x | label) of dequantized pictures or of points, x (B, C, H, W), in nats (B,)."""
        y, logit_log_det = self._to_logits(x)
        z, log_det = self.net(y, None, label)
        return likelihood.standard_normal(z) + log_det + logit_log_det

    def _nats(self, x: Tensor, label: Label) -> Tensor:
        return likelihood.discrete_nats(self.log_density(x, label), self.facts)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        label: Label,
        rng: Rng,
        *,
        temperature: Annotated[float, Field(gt=0, le=2)] | None = None,
        guidance: Annotated[float, Field(ge=0, le=20)] = 1.0,
    ) -> Samples:
        """Turn noise (B, C, H, W) into data with one pass of the inverse net, or two with guidance.

        Args:
            noise: (B, C, H, W), standard normal.
            label: (B,).
            rng: not used.
            temperature: factor of the noise; None: 0.8 for pictures, 0.5 for latents, 1 for points.
            guidance: the guidance scale w; 1 is no guidance.
        """
        z = (self.temperature if temperature is None else temperature) * noise
        if guidance == 1:
            return Samples(self._from_logits(self.net(z, None, label, inverse=True)[0]), 1)
        both = cat_labels([label, no_label(label, self.facts.classes)])
        y, _ = self.net(torch.cat([z, z]), None, both, inverse=True, guidance=guidance)
        return Samples(self._from_logits(y.chunk(2)[0]), 2)

    def exported(self, options: dict[str, Any]) -> Exported:
        """One pass or, for blocks that are inverted patch by patch, a program for one patch of each block.

        A program of the whole inverse has the layers once for each patch. Tracing that took 3 minutes for 16 patches.
        """
        net, guidance, (C, _, _) = self.net, options["guidance"], self.facts.shape
        if not isinstance(net, PatchInverse):
            return super().exported(options)
        conditions, dims = 1 + (guidance != 1), C * net.patch**2
        cache = (conditions * net.cache_shape[0], *net.cache_shape[1:])
        shapes = {"z": (dims,), "before": (dims,), "i": (), "keys": cache, "values": cache}

        def of(block: int) -> Callable[..., tuple[Tensor, ...]]:
            def run(
                z: Tensor, before: Tensor, i: Tensor, keys: Tensor, values: Tensor, *labels: Label
            ) -> tuple[Tensor, ...]:
                return net.step(block, z, before, i.long(), keys, values, labels, guidance)

            return run

        calls = {f"block{i}": Call(of(i), shapes, conditions) for i in range(net.block_count)}
        values = {
            "blocks": [*reversed(calls)], "grid": list(net.grid), "patch": net.patch, "cache": list(cache),
            "temperature": options["temperature"] or self.temperature, "guided": guidance != 1, "channels": C,
            "bounded": self.facts.bounded, "spread": SPREAD, "margin": MARGIN,
        }  # fmt: skip
        return Exported("blocks", calls, values)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, label: Label, rng: Rng) -> LogLikelihood:
        """The density of dequantized data as a bound on log P of the levels; a mean over `draws` draws of u."""
        draws = self.draws if self.facts.bounded else 1
        found = [wide(self._nats(likelihood.dequantize(x, self.facts, rng), label)) for _ in range(draws)]
        nats = torch.stack(found)
        stderr = nats.std(0) / draws**0.5 if draws > 1 else torch.zeros_like(nats[0])
        method = f"density of dequantized levels, {draws} draws" if self.facts.bounded else "density"
        return LogLikelihood(nats.mean(0), "exact-dequantized", stderr, draws, method)

    @torch.no_grad()
    def encode(self, x: Tensor, label: Label, rng: Rng) -> Tensor:
        return self.net(self._to_logits(x)[0], None, label)[0]

    @torch.no_grad()
    def decode(self, code: Tensor, label: Label, rng: Rng) -> Tensor:
        return self.sample(code, label, rng, temperature=1.0).x

    def _to_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map pictures in [-1, 1] to scaled logits; return them and log |det| of the map (B,)."""
        if not self.facts.bounded:
            return x, x.new_zeros(x.shape[:1])
        p = MARGIN + (1 - 2 * MARGIN) * (x + 1) / 2
        y = torch.logit(p)
        slope = math.log((1 - 2 * MARGIN) / 2 / SPREAD) - F.logsigmoid(y) - F.logsigmoid(-y)
        return y / SPREAD, slope.flatten(1).sum(1)

    def _from_logits(self, y: Tensor) -> Tensor:
        """Map scaled logits back to pictures; the margins are inside the outer bins."""
        if not self.facts.bounded:
            return y
        return (2 * (torch.sigmoid(SPREAD * y) - MARGIN) / (1 - 2 * MARGIN) - 1).clamp(-1, 1)
