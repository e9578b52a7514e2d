"""GAN: a generator and a discriminator; gradient penalties on the discriminator make their game converge.

    relativistic     L_D = softplus(-(D(x) - D(G z)))                 L_G = softplus(-(D(G z) - D(x)))
    non_saturating   L_D = softplus(-D(x)) + softplus(D(G z))         L_G = softplus(-D(G z))
    minimax          L_D = softplus(-D(x)) + softplus(D(G z))         L_G = log(1 - sigmoid D(G z)) = -softplus(D(G z))

    plus, for the discriminator, R1 and R2 at every step:   gamma/2 (|grad D(x)|^2 + |grad D(G z)|^2)

The mean of the penalties is estimated from one row in `penalty_every`, because second derivatives take most of the
discriminator's time. Which rows these are depends only on their numbers in the global batch, not on the workers.

Both players receive the same label. Each real row is paired with one fake row, so the loss is a mean over rows. There
are no minibatch statistics; the pairing prevents mode collapse without them.

References:
    The GAN is dead; long live the GAN! (Huang, Gokaslan, Kuleshov, Tompkin, 2025), equations 2, 3 and 6
    https://arxiv.org/abs/2501.05441
    The relativistic discriminator (Jolicoeur-Martineau, 2019)                     https://arxiv.org/abs/1807.00734
    Generative Adversarial Nets (Goodfellow et al., 2014), for the other two games   https://arxiv.org/abs/1406.2661
    Stabilizing Training of GANs through Regularization (Roth et al., 2017), for slopes as differences
    https://arxiv.org/abs/1705.09367
    Analyzing and Improving the Image Quality of StyleGAN (Karras et al., 2020), for penalties in one step of 16
    https://arxiv.org/abs/1912.04958
"""

import math
from contextlib import nullcontext
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.families.base import DIAGNOSE_EVERY, Family, Samples
from genflow.maths.guidance import cat_labels, drop_labels, no_label
from genflow.maths.rng import Rng
from genflow.specs import DataSpec, NetSpec
from genflow.text import Label

Game = Literal["relativistic", "non_saturating", "minimax"]
GAMMA, MIN_GAMMA = 0.02, 0.2  # default gamma is GAMMA sqrt(D), as distances grow with sqrt(D)
DIFFERENCE_STEP = 0.05  # standard deviation, per number, of the step of penalty=difference


class Gan(Family):
    """A generator and a discriminator.

    Args:
        nets: {"discriminator": x -> a score (B, 1), "generator": z -> x}.
        facts: of the data.
        latent: the numbers in z.
        game: the losses: relativistic, non_saturating or minimax; their formulas are at the top of the module.
        gamma: weight of the penalties R1 and R2 at the start; null: 0.02 sqrt(D) with a minimum of 0.2 in the
            relativistic game, for D numbers per sample, and 0 in the other two, as in their original papers.
        gamma_fall: gamma decreases to gamma / gamma_fall along half a cosine during training; null: 10 for points, and
            1 for all else.
        penalty: exact (second derivatives), or difference (a finite difference along one random direction per row,
            which is less accurate).
        penalty_every: one row in so many has the penalties; null: 1 for points, and 4 for all else.
        forget: share of labels dropped during training, for both players, so that samples without a label work; 1:
            labels are never used.
        patience: steps for which the discriminator may dominate before the run counts as diverged; 0: no limit.
    """

    title = "GAN"
    objective = "relativistic game with R1 and R2"
    steps = "1"
    players = ("discriminator", "generator")
    shardable = False
    validates = False
    default_net: ClassVar[str] = "fixup"

    def __init__(
        self,
        nets: dict[str, nn.Module],
        facts: DataSpec,
        *,
        latent: Annotated[int, Field(ge=1, le=4096)] = 64,
        game: Game = "relativistic",
        gamma: Annotated[float, Field(ge=0)] | None = None,
        gamma_fall: Annotated[float, Field(ge=1)] | None = None,
        penalty: Literal["exact", "difference"] = "exact",
        penalty_every: Annotated[int, Field(ge=1, le=64)] | None = None,
        forget: Annotated[float, Field(ge=0, le=1)] = 0.1,
        patience: Annotated[int, Field(ge=0)] = 1000,
    ) -> None:
        super().__init__(facts)
        self.discriminator, self.generator = nets["discriminator"], nets["generator"]
        self.noise_shape = (latent,)
        self.game, self.penalty, self.forget = game, penalty, forget
        self.gamma_fall = gamma_fall or (10.0 if facts.is_points else 1.0)
        self.penalty_every = penalty_every or (1 if facts.is_points else 4)
        if gamma is None:
            gamma = max(MIN_GAMMA, GAMMA * math.sqrt(facts.dims)) if game == "relativistic" else 0.0
        self.gamma = gamma
        self._gamma_now = gamma
        self.watch = TrainingMonitor(patience)

    @classmethod
    def ports(cls, facts: DataSpec, **options: object) -> dict[str, NetSpec]:
        latent = int(options["latent"])  # type: ignore[call-overload]
        score = NetSpec(facts.shape, (1,), offset=options["game"] != "relativistic")
        return {"discriminator": score, "generator": NetSpec((latent,), facts.shape)}

    @classmethod
    def check_compilation(cls, **options: Any) -> None:
        no_penalty = options["gamma"] == 0 or (options["gamma"] is None and options["game"] != "relativistic")
        if options["penalty"] == "exact" and not no_penalty:
            raise UsageError(
                "train.compile: torch.compile cannot differentiate the discriminator twice, as penalty=exact does",
                "--set family.penalty=difference, or --set train.compile=false",
            )

    def prepare(self, position: float) -> None:
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, position)))
        self._gamma_now = self.gamma * (share + (1 - share) / self.gamma_fall)

    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        # bfloat16 has three digits: enough for pixels, but too few to separate neighbouring points.
        with torch.autocast(batch.x.device.type, enabled=False) if self.facts.is_points else nullcontext():
            label = drop_labels(batch.label, self.facts.classes, self.forget, rng)
            z = rng.normal((len(batch), *self.noise_shape))
            player_loss = self._discriminator_loss if player == "discriminator" else self._generator_loss
            return player_loss(batch.x, z, label, rng)

    def _discriminator_loss(self, x: Tensor, z: Tensor, label: Label, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            fake = self.generator(z, None, label).float()
        rows = slice(-rng.first % self.penalty_every, len(x), self.penalty_every)
        away = [rng.normal(x.shape)[rows] for _ in range(2)] if self.penalty == "difference" else []
        if self.gamma and self.penalty_every == 1:  # one pass gives both
            scores, squared = self._slopes(x, fake, label, away)
        else:
            scores, squared = self._score(torch.cat([x, fake]), cat_labels([label, label])), x.new_zeros(())
            if self.gamma and len(x[rows]):
                _, squared = self._slopes(x[rows], fake[rows], label[rows], away)
        real, fake = scores.chunk(2)
        if self.game == "relativistic":
            game = F.softplus(fake - real)
        else:
            game = F.softplus(-real) + F.softplus(fake)
        penalty = squared.sum() * self.penalty_every / len(x)  # R1 + R2
        loss = game.mean() + self._gamma_now / 2 * penalty
        gap = real - fake
        numbers = {"gap": gap.mean(), "told_apart": (gap > 0).float().mean(), "penalty": penalty}
        return loss, {name: number.detach() for name, number in numbers.items()}

    def _slopes(self, x: Tensor, fake: Tensor, label: Label, away: list[Tensor]) -> tuple[Tensor, Tensor]:
        """D of real, then of fake rows, (2 B,), and |grad D|^2 of both.

        Args:
            x: real rows (B, C, H, W).
            fake: as many generated rows.
            label: of both.
            away: for a difference in place of the gradient: one direction for each real and for each fake row.
        """
        both, labels = torch.cat([x, fake]), cat_labels([label, label])
        if away:
            moved = both + DIFFERENCE_STEP * torch.cat(away)
            scores, others = self._score(torch.cat([both, moved]), cat_labels([labels, labels])).chunk(2)
            return scores, ((others - scores) / DIFFERENCE_STEP).square()  # its mean over directions is |grad D|^2
        both.requires_grad_()
        scores = self._score(both, labels)
        (slope,) = torch.autograd.grad(scores.sum(), both, create_graph=True)
        return scores, slope.float().flatten(1).square().sum(1)

    def _generator_loss(self, x: Tensor, z: Tensor, label: Label, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        fake = self._score(self.generator(z, None, label).float(), label)
        if self.game == "minimax":
            return -F.softplus(fake).mean(), {}
        if self.game == "non_saturating":
            return F.softplus(-fake).mean(), {}
        with torch.no_grad():
            real = self._score(x, label)
        return F.softplus(real - fake).mean(), {}

    def _score(self, x: Tensor, label: Label) -> Tensor:
        """D(x) for x (B, C, H, W), in single precision, (B,)."""
        return self.discriminator(x, None, label).float().flatten()

    @torch.no_grad()
    def sample(
        self, noise: Tensor, label: Label, rng: Rng, *, temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    ) -> Samples:
        if self.forget == 1:
            label = no_label(label, self.facts.classes)
        x = self.generator(temperature * noise, None, label).float()
        return Samples(x.clamp(-1, 1) if self.facts.bounded else x, 1)

    def diagnose(self, numbers: dict[str, float]) -> str:
        return self.watch(numbers)

    def reset_diagnosis(self) -> None:
        self.watch.dominated.zero_()
        self.watch.bursts.zero_()


class TrainingMonitor(nn.Module):
    """Diagnose training problems of a GAN from its logged numbers; the state is in persistent buffers.

    Divergence: a watched number is not finite, or it exceeds `BURST_RATIO` times its usual size in `BURST_LOOKS`
    consecutive calls.
    Dominance: the score of nearly every real row is above that of its fake row, and the gap grows or is very large.

    Args:
        patience: steps for which the discriminator may dominate; 0: no limit.
    """

    WATCHED: ClassVar[dict[str, str]] = {
        "loss/discriminator": "the discriminator's loss",
        "loss/generator": "the generator's loss",
        "penalty": "the discriminator's squared slope",
        "gradient_norm/discriminator": "the discriminator's gradient",
        "gradient_norm/generator": "the generator's gradient",
    }
    BURST_RATIO, BURST_LOOKS = 100.0, 3
    SEPARATED_SHARE, GAP_GROWTH, LARGE_GAP = 0.98, 1.05, 20.0  # a share of rows; fast over slow mean; nats

    usual: Tensor
    bursts: Tensor
    gaps: Tensor
    dominated: Tensor

    def __init__(self, patience: int) -> None:
        super().__init__()
        self.patience = patience
        self.register_buffer("usual", torch.ones(len(self.WATCHED)))  # at least 1: small values are no bursts
        self.register_buffer("bursts", torch.zeros(len(self.WATCHED)))
        self.register_buffer("gaps", torch.full((2,), math.nan))  # a fast and a slow moving average of D(x) - D(G z)
        self.register_buffer("dominated", torch.zeros(()))

    def forward(self, numbers: dict[str, float]) -> str:
        """Describe the problem, or return "" if there is none.

        Args:
            numbers: logged numbers by name: those in `WATCHED`, "gap" and "told_apart".
        """
        return self._divergence(numbers) or self._dominance(numbers["gap"], numbers["told_apart"])

    def _divergence(self, numbers: dict[str, float]) -> str:
        sizes = torch.tensor([abs(numbers[name]) for name in self.WATCHED], device=self.usual.device)
        burst = ~(sizes <= self.BURST_RATIO * self.usual)  # NaN counts as a burst, too
        self.bursts.copy_((self.bursts + 1) * burst)
        for (name, words), times, usual in zip(
            self.WATCHED.items(), self.bursts.tolist(), self.usual.tolist(), strict=True
        ):
            if not math.isfinite(numbers[name]):
                return f"the game diverges: {words} is not finite"
            if times >= self.BURST_LOOKS:
                ratio = abs(numbers[name]) / usual
                return f"the game diverges: {words} is {numbers[name]:.3g}, {ratio:,.0f} times its usual size"
        self.usual.copy_(torch.where(burst, self.usual, (0.9 * self.usual + 0.1 * sizes).clamp(min=1)))
        return ""

    def _dominance(self, gap: float, separated: float) -> str:
        seen = torch.where(self.gaps.isnan(), gap, self.gaps)
        self.gaps.copy_(seen.lerp(torch.full_like(seen, gap), seen.new_tensor([0.3, 0.05])))
        fast, slow = self.gaps.tolist()
        dominant = separated >= self.SEPARATED_SHARE and (fast > self.GAP_GROWTH * slow or fast > self.LARGE_GAP)
        self.dominated.copy_((self.dominated + 1) * dominant)
        steps = int(self.dominated) * DIAGNOSE_EVERY
        if not self.patience or steps < self.patience:
            return ""
        return (
            f"the discriminator dominates: for {steps:,} steps it has separated {100 * separated:.0f} % of real rows "
            f"from generated ones, with a gap of {fast:.1f} nats, so the generator learns nothing"
        )
