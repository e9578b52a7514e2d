"""MeanFlow: learn the average velocity over a whole step, so that one step is exact where one step is learned.

    x_t = (1 - t) x + t eps,   v = eps - x                    t = 0 is data, t = 1 is noise
    u(x_t, r, t) = 1/(t - r) integral of the velocity from r to t,   r <= t;   u(x_t, t, t) is the velocity itself
    x_r = x_t - (t - r) u(x_t, r, t)                          a step of any length, one evaluation

Differentiating (t - r) u along the way gives the identity v = u + (t - r) du/dt, whose right side is trained to
be the velocity that one knows:

    V    = u_net(x_t, r, t) + (t - r) stop_gradient(du/dt)
    du/dt = d/dh u_net(x_t + h v_net, r, t + h) at h = 0,     v_net = u_net(x_t, t, t)
    loss = E w ||V - (eps - x)||^2,                           w = stop_gradient(||V - (eps - x)||^2 + 0.001)^-power

This is the improved form: the target is data, and the way is followed with the net's own velocity, not with the
noisy one of a single pair. The derivative is a secant (two evaluations) or exact, by forward differentiation.

References:
    Mean Flows for One-step Generative Modeling (Geng et al., 2025)        https://arxiv.org/abs/2505.13447
    Improved Mean Flows (Geng et al., 2025), for the loss in V             https://arxiv.org/abs/2512.02012
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.families.base import Family, Samples
from genflow.families.gaussian import ode_decode, ode_encode
from genflow.maths import timesteps
from genflow.maths.guidance import drop_labels
from genflow.maths.paths import StraightPath, Time, over, uniform_times
from genflow.maths.rng import Rng
from genflow.maths.samplers import Denoise
from genflow.specs import DataSpec, NetSpec

# Half the secant's width, in t. In single precision it agrees with the exact derivative to a cosine of 0.995 on a
# net whose clock has up to 50 rad; in bfloat16 only to 0.97. It never looks beyond t = 1 or r = t: nothing tells
# the net what to say there, and a derivative that asks it grows without bounds (mean square 27 after 460 steps).
HALF_WIDTH = 0.02
ERROR_FLOOR = 1e-3  # of the weight, a mean square: an error that is next to nothing has no endless weight


class MeanFlow(Family):
    """A net of two times on the straight path.

    Args:
        nets: {"net": predicts u from (x_t (B, C, H, W), 1000 t (B,), label (B,), 1000 r (B,))}.
        facts: of the data.
        instant: share of rows with r = t, where this is flow matching.
        whole: share of the other rows with r = 0: steps that end at the data.
        first: share of the other rows with t = 1: steps that begin at noise.
        derivative: of u along the way: a secant of two evaluations, or exact, by forward differentiation.
        power: of the weight; 0: none, which is least squares; 1: nearly the logarithm of the error.
        forget: share of labels dropped while training, so that samples without a label work.
    """

    title = "MeanFlow"
    objective = "average velocity over a step"
    steps = "1 to 4, or any"
    shardable = False

    def __init__(
        self,
        nets: dict[str, nn.Module],
        facts: DataSpec,
        *,
        instant: Annotated[float, Field(ge=0, le=1)] = 0.75,
        whole: Annotated[float, Field(ge=0, le=1)] = 0.25,
        first: Annotated[float, Field(ge=0, le=1)] = 0.2,
        derivative: Literal["secant", "jvp"] = "secant",
        power: Annotated[float, Field(ge=0, le=1)] = 0.25,
        forget: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    ) -> None:
        super().__init__(facts)
        self.net = nets["net"]
        self.path = StraightPath()
        self.instant, self.whole, self.first = instant, whole, first
        self.derivative, self.power, self.forget = derivative, power, forget

    @classmethod
    def ports(cls, facts: DataSpec, **options: object) -> dict[str, NetSpec]:
        return {"net": NetSpec(facts.shape, facts.shape, time=True, second_time=True)}

    def average(self, x: Tensor, t: Tensor, r: Tensor, label: Tensor) -> Tensor:
        """u(x_t, r, t), (B, C, H, W), in single precision; t and r (B,)."""
        return self.net(x, 1000 * t, label, 1000 * r).float()

    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch.x
        eps = rng.normal(x.shape) if batch.noise is None else batch.noise
        t, r = (each.to(x.device) for each in self.times(len(x), rng))
        label = drop_labels(batch.label, self.facts.classes, self.forget, rng)
        y = torch.lerp(x, eps, over(t, x))
        u = self.average(y, t, r, label)
        slope = self.total_derivative(y, t, r, label)
        usable = slope.flatten(1).isfinite().all(1)  # a row whose derivative overflows says nothing about u
        slope = torch.where(over(usable, x) > 0, slope, 0.0)
        error = (u + over(t - r, x) * slope - (eps - x)).square().flatten(1).mean(1)
        weight = (error.detach() + ERROR_FLOOR) ** -self.power
        rows = usable.to(error.dtype)
        square = (over(t - r, x) * slope).square().flatten(1).mean(1)
        return (rows * weight * error).mean(), {"error": error.detach().mean(), "correction": square.mean()}

    def times(self, rows: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """Times 0 <= r <= t <= 1, (rows,) each."""
        a, b = (timesteps.draw("logit_normal", rows, rng, uniform_share=0.3) for _ in range(2))
        draws = rng.uniform((rows, 3))
        begins, ends, alike = draws[:, 0], draws[:, 1], draws[:, 2]
        t, r = torch.maximum(a, b), torch.minimum(a, b)
        t, r = torch.where(begins < self.first, 1.0, t), torch.where(ends < self.whole, 0.0, r)
        same = alike < self.instant
        return torch.where(same, a, t), torch.where(same, a, r)

    @torch.no_grad()
    def total_derivative(self, y: Tensor, t: Tensor, r: Tensor, label: Tensor) -> Tensor:
        """du/dt along the net's own way, (B, ...); zero where r = t, where it is not needed."""
        out = torch.zeros_like(y)
        rows = (t > r).nonzero().flatten()
        if not len(rows):
            return out
        y, t, r, label = y[rows], t[rows], r[rows], label[rows]
        v = self.average(y, t, t, label)
        with torch.autocast(y.device.type, enabled=False):
            if self.derivative == "jvp":
                # group_norm's derivative knows no channels-last layout, and a picture of one channel may claim it
                plain, way = (each.clone(memory_format=torch.contiguous_format) for each in (y, v))
                ones = torch.ones_like(t)
                du = torch.func.jvp(lambda a, b: self.average(a, b, r, label), (plain, t), (way, ones))[1]
            else:
                up, down = (t + HALF_WIDTH).clamp(max=1), torch.maximum(t - HALF_WIDTH, r)
                ahead = self.average(y + over(up - t, y) * v, up, r, label)
                back = self.average(y + over(down - t, y) * v, down, r, label)
                du = (ahead - back) / over(up - down, y)
        return out.index_copy(0, rows, du.to(out.dtype))

    @torch.no_grad()
    def sample(
        self, noise: Tensor, label: Tensor, rng: Rng, *, steps: Annotated[int, Field(ge=1, le=1000)] = 2
    ) -> Samples:
        x, clock = noise, uniform_times(steps)
        for t, r in zip(clock[:-1], clock[1:], strict=True):
            at, to = (torch.full(x.shape[:1], each, device=x.device) for each in (t, r))
            u = self.average(x, at, to, label)
            self.show(x, x - t * u)
            x = x - (t - r) * u
        return Samples(x, steps)

    @torch.no_grad()
    def encode(self, x: Tensor, label: Tensor, rng: Rng) -> Tensor:
        """The noise at the other end of x's ODE, whose velocity is u(x_t, t, t), by the midpoint method."""
        return ode_encode(self._denoiser(label), self.path, x)

    @torch.no_grad()
    def decode(self, code: Tensor, label: Tensor, rng: Rng) -> Tensor:
        return ode_decode(self._denoiser(label), self.path, code)

    def _denoiser(self, label: Tensor) -> Denoise:
        def denoise(y: Tensor, t: Time) -> Tensor:
            at = torch.as_tensor(t, dtype=torch.float32, device=y.device).expand(len(y))
            return y - over(at, y) * self.average(y, at, at, label)

        return denoise
