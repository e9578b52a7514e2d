"""Autoencoder: pictures as a small grid of latents, on which the other families train.

    loss = |e|_1 + gradient |grad e|_1 + dct |DCT e|_1 + kl KL(q(z | x) || N(0, I)),   e = decoder(z) - x,  z ~ q(z | x)

    plus, if their weights are set,   perceptual d(decoder(z), x)   and   adversarial w -D(decoder(z))

Each norm is a mean over its numbers. grad e holds the differences of neighbouring pixels. DCT e is the discrete cosine
transform of blocks of 8 x 8 pixels, whose grid has a random offset for each row: it weighs errors by frequency, and the
random offset prevents edges of blocks in the reconstruction. d is a distance in the features of an ImageNet network.

D is a discriminator of patches, a second player with the hinge loss max(0, 1 - D(x)) + max(0, 1 + D(decoder(z))). Each
row's w is the ratio of the gradients, with respect to its reconstruction, of all other terms and of D. VQGAN takes the
gradients with respect to the last layer, over the whole batch; the loss would then be no mean over rows.

The decoder is deterministic, and no prior is fitted: the distribution of the latents is what the other families learn.
Outside this module latents are standardized: each channel has mean 0 and deviation 1 over the training data.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)   https://arxiv.org/abs/2112.10752
    Taming Transformers for High-Resolution Image Synthesis, VQGAN (Esser et al., 2021), for the discriminator
    https://arxiv.org/abs/2012.09841
    From Variational to Deterministic Autoencoders (Ghosh et al., 2020), for the deterministic form with noise
    https://arxiv.org/abs/1903.12436
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.families.base import Call, Exported, Family, Samples
from genflow.maths import imagenet
from genflow.maths.cosine_transform import cosine_transform
from genflow.maths.imagenet import PerceptualDistance
from genflow.maths.rng import Rng, SampleRng
from genflow.maths.similarity import psnr
from genflow.maths.wide import wide, wide_type
from genflow.specs import DataSpec, NetSpec
from genflow.text import Label

FACTORS = (2, 4, 8, 16, 32)
FIRST_LOG_VARIANCE = -4.0  # of the latents before training: with more noise the decoder learns nothing at first
SMALL_SIDE, SMALL_FACTOR, LARGE_FACTOR = 64, 4, 8  # up to this side in pixels the smaller factor is the default
MIN_POSITIONS = 4  # a side, of the default
DCT_SIDE = 8  # side of the blocks, as in JPEG
STATISTICS_ROWS = 2048  # training rows over which the mean and the deviation of the latents are measured


class Autoencoder(Family):
    """An encoder from pictures to latents, and a decoder back.

    Args:
        nets: {"encoder": x (B, C, H, W) -> the mean of the latents, and for a Gaussian posterior their log-variance,
            (B, c or 2c, H/f, W/f), "decoder": latents -> x}.
        facts: of the pictures.
        factor: f, the ratio of the sides of pictures and latents; 0: 4 for pictures up to 64 pixels and 8 for larger
            ones, or less, so that it divides the side and leaves 4 x 4 positions.
        channels: c, the numbers at each position of the latents; 0: 2 f.
        posterior: gaussian: latents are drawn from a Gaussian of learned mean and variance; deterministic: each
            position has root mean square 1, and noise of a random size up to `noise` is added.
        kl: weight of the KL divergence from N(0, I) per number of the latents, of a Gaussian posterior.
        noise: largest standard deviation of the noise of a deterministic posterior.
        gradient: weight of the error of differences of neighbouring pixels.
        dct: weight of the error of the discrete cosine transform.
        perceptual: weight of the distance in features of an ImageNet network; above 0 it needs the extra `imagenet`.
        adversarial: weight of the discriminator; 0: there is none.
        adversarial_start: share of training after which the discriminator learns and is used.

    Raises:
        UsageError: the data is no pictures, or factor does not divide their side.
    """

    title = "Autoencoder"
    objective = "reconstruction from latents"
    steps = "1"
    players: tuple[str, ...] = ("model",)
    shardable = False
    default_net: ClassVar[str] = "autoencoder"
    is_autoencoder = True

    latent_mean: Tensor
    latent_deviation: Tensor

    def __init__(
        self,
        nets: dict[str, nn.Module],
        facts: DataSpec,
        *,
        factor: Literal[0, 2, 4, 8, 16, 32] = 0,
        channels: Annotated[int, Field(ge=0, le=1024)] = 0,
        posterior: Literal["gaussian", "deterministic"] = "gaussian",
        kl: Annotated[float, Field(ge=0)] = 1e-4,
        noise: Annotated[float, Field(ge=0, le=1)] = 0.3,
        gradient: Annotated[float, Field(ge=0)] = 1.0,
        dct: Annotated[float, Field(ge=0)] = 1.0,
        perceptual: Annotated[float, Field(ge=0)] = 0.0,
        adversarial: Annotated[float, Field(ge=0)] = 0.0,
        adversarial_start: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    ) -> None:
        super().__init__(facts)
        self.model = nn.ModuleDict({name: nets[name] for name in ("encoder", "decoder")})
        self.noise_shape = _latent_shape(facts, factor, channels)
        self.gaussian, self.kl, self.noise = posterior == "gaussian", kl, noise
        self.gradient, self.dct, self.perceptual = gradient, dct, perceptual
        self.adversarial, self.adversarial_start = adversarial, adversarial_start
        if "discriminator" in nets:
            self.discriminator = nets["discriminator"]
            self.players = ("model", "discriminator")
        self._position = 1.0
        self._distance: tuple[PerceptualDistance, ...] = ()  # loaded by the first loss; sampling does not need it
        self.register_buffer("latent_mean", torch.zeros(self.noise_shape[0], 1, 1))
        self.register_buffer("latent_deviation", torch.ones(self.noise_shape[0], 1, 1))
        self.transform = BlockDct(facts.shape[1:])

    @classmethod
    def ports(cls, facts: DataSpec, **options: object) -> dict[str, NetSpec]:
        channels = int(options["channels"])  # type: ignore[call-overload]
        c, h, w = _latent_shape(facts, int(options["factor"]), channels)  # type: ignore[call-overload]
        parts = 2 if options["posterior"] == "gaussian" else 1
        encoder = NetSpec(facts.shape, (parts * c, h, w), parts=parts)
        found = {"encoder": encoder, "decoder": NetSpec((c, h, w), facts.shape)}
        if options["adversarial"]:
            found["discriminator"] = NetSpec(facts.shape, (1, h, w))
        return found

    @classmethod
    def require_packages(cls, **options: Any) -> None:
        if options["perceptual"]:
            imagenet.require("family.perceptual")

    @classmethod
    def default_net_for(cls, facts: DataSpec) -> dict[str, Any]:
        return {"kind": cls.default_net}

    def prepare(self, position: float) -> None:
        self._position = position

    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        if player == "discriminator":
            return self._discriminator_loss(batch.x, rng)
        terms, numbers = self._losses(batch, rng)
        return terms.mean(), numbers

    def row_losses(self, batch: Batch, rng: Rng) -> Tensor:
        self.prepare(-1.0)  # without the discriminator, which changes in training
        return self._losses(batch, rng)[0]

    def _losses(self, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each row (B,), and numbers to log."""
        x, (mean, log_variance) = batch.x, self._posterior(batch.x)
        back = self._reconstruct(self._drawn(mean, log_variance, rng))
        error, numbers = back - x, dict[str, Tensor]()
        terms = error.abs().mean((1, 2, 3))
        numbers["l1"] = terms.mean()
        if self.gradient:
            steps = sum(error.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (-1, -2))
            terms = terms + self.gradient * steps / 2
        if self.dct:
            terms = terms + self.dct * self.transform(error, rng.uniform((len(x), 2))).abs().mean((1, 2, 3))
        if self.perceptual:
            self._distance = self._distance or (PerceptualDistance(),)
            distance = self._distance[0](x, back)
            numbers["perceptual"] = distance.mean()
            terms = terms + self.perceptual * distance
        if self._plays:
            score = -self.discriminator(back).float().mean((1, 2, 3))
            terms = terms + self.adversarial * _ratio_of_gradients(terms, score, back) * score
            numbers["fooled"] = (score < 0).float().mean()
        if self.gaussian:
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean((1, 2, 3))
            numbers["kl"] = kl.mean()
            terms = terms + self.kl * kl
        numbers["psnr"] = psnr(back.detach(), x).mean()
        return terms, numbers

    @property
    def _plays(self) -> bool:
        """Whether the discriminator learns and is used, at this position of the training."""
        return bool(self.adversarial) and self._position >= self.adversarial_start

    def _discriminator_loss(self, x: Tensor, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        if not self._plays:  # a loss without a gradient leaves the weights as they are
            return 0.0 * torch.stack([p.float().sum() for p in self.discriminator.parameters()]).sum(), {}
        with torch.no_grad():
            back = self._reconstruct(self._drawn(*self._posterior(x), rng))
        real, fake = self.discriminator(torch.cat([x, back])).float().chunk(2)
        return (1 - real).relu().mean() + (1 + fake).relu().mean(), {"told_apart": (real > fake).float().mean()}

    def _drawn(self, mean: Tensor, log_variance: Tensor, rng: Rng) -> Tensor:
        """A draw of the latents from the posterior, (B, c, h, w)."""
        eps = rng.normal(mean.shape)
        deviation = (0.5 * log_variance).exp() if self.gaussian else self.noise * rng.uniform((len(mean), 1, 1, 1))
        return mean + deviation * eps

    @torch.no_grad()
    def sample(self, noise: Tensor, label: Label, rng: Rng) -> Samples:
        """The pictures of random latents; they are no samples of the data, because no prior is fitted."""
        return Samples(self.decode(noise, label, rng), 1)

    @torch.no_grad()
    def encode(self, x: Tensor, label: Label, rng: Rng) -> Tensor:
        """The standardized mean of the posterior, (B, c, H/f, W/f); nothing is drawn."""
        return (self._posterior(x)[0] - self.latent_mean) / self.latent_deviation

    @torch.no_grad()
    def decode(self, code: Tensor, label: Label, rng: Rng) -> Tensor:
        return self._reconstruct(code * self.latent_deviation + self.latent_mean).clamp(-1, 1)

    def exported(self, options: dict[str, Any]) -> Exported:
        """Both halves; there is no loop that draws pictures."""
        none = SampleRng([], "none")
        calls = {
            "encoder": Call(lambda x, label: self.encode(x, label, none), {"x": self.facts.shape}),
            "decoder": Call(lambda z, label: self.decode(z, label, none), {"z": self.code_shape}),
        }
        return Exported("none", calls)

    @torch.no_grad()
    def finish(self, data: Callable[[int], Batch]) -> None:
        """Measure the mean and the deviation of each channel over training rows."""
        wanted, seen, number = min(STATISTICS_ROWS, self.facts.splits.get("train", STATISTICS_ROWS)), 0, 0
        device = self.latent_mean.device
        sums = torch.zeros(2, len(self.latent_mean), dtype=wide_type(device), device=device)
        while seen < wanted:
            batch = data(number)
            mean = wide(self._posterior(batch.x[: wanted - seen])[0])
            sums += torch.stack([mean.mean((2, 3)).sum(0), mean.square().mean((2, 3)).sum(0)])
            seen, number = seen + len(mean), number + 1
        centre, square = sums / seen
        self.latent_mean.copy_(centre[:, None, None])
        deviation = (square - centre.square()).clamp(min=0).sqrt()
        self.latent_deviation.copy_(deviation.clamp(min=1e-6)[:, None, None])

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the log-variance of the latents before standardization, (B, c, h, w) each."""
        answer = self.model["encoder"](x).float()
        if self.gaussian:
            mean, log_variance = answer.chunk(2, 1)
            return mean, (log_variance + FIRST_LOG_VARIANCE).clamp(-20, 4)
        mean = answer * (answer.square().mean(1, keepdim=True) + 1e-6).rsqrt()
        return mean, torch.zeros_like(mean)

    def _reconstruct(self, z: Tensor) -> Tensor:
        return self.model["decoder"](z).float()


class BlockDct(nn.Module):
    """The orthonormal discrete cosine transform of blocks of pictures, on a grid with another offset for each row.

    Pixels outside the grid's whole blocks do not count.

    Args:
        sides: (H, W) of the pictures.
    """

    def __init__(self, sides: tuple[int, ...]) -> None:
        super().__init__()
        for axis, side in zip("hw", sides, strict=True):
            self.register_buffer(axis, _shifted_transforms(side), persistent=False)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Coefficients of x (B, C, H, W), for offsets (B, 2) in [0, 1) of the whole range of offsets."""
        h, w = (
            table[(share * len(table)).long()][:, None]
            for table, share in zip((self.get_buffer("h"), self.get_buffer("w")), offset.unbind(1), strict=True)
        )
        with torch.autocast(x.device.type, enabled=False):
            return h @ x @ w.mT


def _shifted_transforms(side: int) -> Tensor:
    """For each offset the matrix from `side` pixels to the coefficients of the whole blocks after the offset."""
    block = min(DCT_SIDE, side)
    count = max(1, (side - block + 1) // block)
    blocks = torch.block_diag(*[torch.tensor(cosine_transform(block))] * count).float()
    offsets = range(min(block, side - block * count + 1))
    return torch.stack([nn.functional.pad(blocks, (o, side - block * count - o)) for o in offsets])


def _ratio_of_gradients(one: Tensor, other: Tensor, x: Tensor) -> Tensor:
    """|d one / d x| / |d other / d x| of each row, (B,), at most 10,000; a constant for gradients."""
    norms = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0].flatten(1).norm(dim=1) for y in (one, other)]
    return (norms[0] / (norms[1] + 1e-8)).clamp(max=1e4).detach()


def _latent_shape(facts: DataSpec, factor: int, channels: int) -> tuple[int, int, int]:
    """(c, H/f, W/f) for the factor f; 0 stands for the default of these pictures, of both.

    Raises:
        UsageError: the data is no pictures, or the factor does not divide their side.
    """
    if facts.is_latents:
        raise UsageError(
            "an autoencoder learns pictures, and this data is latents", "train another family on it, or omit --latents"
        )
    if not facts.bounded:
        raise UsageError(
            "an autoencoder learns pictures, and this data is points of the plane", "train vae or another family on it"
        )
    _, H, W = facts.shape
    fits = [f for f in FACTORS if H % f == W % f == 0]
    if not fits:
        raise UsageError(
            f"an autoencoder needs an even side; this data is {H}x{W}",
            f"genflow prepare SOURCE --size {max(8, H // 8 * 8)}",
        )
    if factor and factor not in fits:
        near = max([f for f in fits if f <= factor and MIN_POSITIONS * f <= min(H, W)], default=fits[0])
        raise UsageError(
            f"factor={factor} needs a side that {factor} divides; this data is {H}x{W}: use factor={near}",
            f"--set family.factor={near}",
        )
    if not factor:
        largest = SMALL_FACTOR if max(H, W) <= SMALL_SIDE else LARGE_FACTOR
        factor = max([f for f in fits if f <= largest and MIN_POSITIONS * f <= min(H, W)], default=fits[0])
    return channels or 2 * factor, H // factor, W // factor
