"""MeanFlow: learn the average velocity over a whole step, so that sampling in one step is exact.

    x_t = (1 - t) x + t eps,   v = eps - x                    t = 0 is data, t = 1 is noise
    u(x_t, r, t) = 1/(t - r) integral of the velocity from r to t,   r <= t;   u(x_t, t, t) is the velocity itself
    x_r = x_t - (t - r) u(x_t, r, t)                          a step of any length, one evaluation

Differentiating (t - r) u along the trajectory gives the identity v = u + (t - r) du/dt. Its right side is trained to
equal the known velocity:

    V    = u_net(x_t, r, t) + (t - r) stop_gradient(du/dt)
    du/dt = d/dh u_net(x_t + h v_net, r, t + h) at h = 0,     v_net = u_net(x_t, t, t)
    loss = E w ||V - (eps - x)||^2,                           w = stop_gradient(||V - (eps - x)||^2 + 0.001)^-power

This is the improved form of the loss: the target is data, and the derivative follows the velocity of the net instead
of the noisy velocity of a single pair (x, eps). The derivative is a central difference (two evaluations), or exact by
forward-mode differentiation.

References:
    Mean Flows for One-step Generative Modeling (Geng et al., 2025)        https://arxiv.org/abs/2505.13447
    Improved Mean Flows (Geng et al., 2025), for the loss in V             https://arxiv.org/abs/2512.02012
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.families.base import Call, Exported, Family, Samples
from genflow.families.gaussian import need_prediction, ode_decode, ode_encode
from genflow.maths import timesteps
from genflow.maths.guidance import drop_labels
from genflow.maths.paths import StraightPath, Time, over, uniform_times
from genflow.maths.rng import Rng
from genflow.maths.samplers import Denoise
from genflow.maths.tf32 import tf32
from genflow.specs import DataSpec, NetSpec
from genflow.text import Label

# Half the width of the secant, in t. With time frequencies of up to 50 rad its cosine similarity with the exact
# derivative is 0.995 in single precision, and only 0.97 in bfloat16. The secant stays within r <= t <= 1. The net is
# not trained outside, and a derivative that uses values from there grows without bounds (mean square 27 after 460
# steps).
HALF_WIDTH = 0.02
ERROR_FLOOR = 1e-3  # added to the mean squared error in the weight, so that very small errors have a finite weight


class MeanFlow(Family):
    """A net with two time inputs on the straight path.

    Args:
        nets: {"net": predicts u from (x_t (B, C, H, W), 1000 t (B,), label (B,), 1000 r (B,))}.
        facts: of the data.
        instant: share of rows with r = t, for which the loss is that of flow matching.
        whole: share of the other rows with r = 0, for steps that end at the data.
        first: share of the other rows with t = 1, for steps that start at noise.
        derivative: how du/dt is computed: a secant of two evaluations, or exact (jvp) by forward-mode differentiation.
        power: exponent of the weight; 0: no weight, which is least squares; 1: nearly the logarithm of the error.
        forget: share of labels dropped during training, so that samples without a label work.
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

    def init_from(self, source: Family) -> None:
        need_prediction(self, source, "velocity")
        super().init_from(source)

    def average(self, x: Tensor, t: Tensor, r: Tensor, label: Label) -> Tensor:
        """u(x_t, r, t), (B, C, H, W), in single precision; t and r (B,)."""
        return self.net(x, 1000 * t, label, 1000 * r).float()

    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        error, usable, correction = self._errors(batch, rng)
        weight = (error.detach() + ERROR_FLOOR) ** -self.power
        loss = (usable.to(error.dtype) * weight * error).mean()
        return loss, {"error": error.detach().mean(), "correction": correction.mean()}

    def row_losses(self, batch: Batch, rng: Rng) -> Tensor:
        return self._errors(batch, rng)[0]  # the loss has weights that hide its size

    def _errors(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """The error of each row, whether its derivative is finite, and the size of its correction, (B,) each."""
        x = batch.x
        eps = rng.normal(x.shape) if batch.noise is None else batch.noise
        times = self.times(len(x), rng.on("cpu"))
        rows = (times[0] > times[1]).nonzero().flatten()
        t, r = (each.to(x.device, non_blocking=True) for each in times)
        label = drop_labels(batch.label, self.facts.classes, self.forget, rng)
        y = torch.lerp(x, eps, over(t, x))
        u = self.average(y, t, r, label)
        slope = self.total_derivative(y, t, r, label, rows)
        usable = slope.flatten(1).isfinite().all(1)  # rows whose derivative overflows are left out
        slope = torch.where(over(usable, x) > 0, slope, 0.0)
        error = (u + over(t - r, x) * slope - (eps - x)).square().flatten(1).mean(1)
        return error, usable, (over(t - r, x) * slope).square().flatten(1).mean(1)

    def times(self, rows: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """Draw training times t and r with 0 <= r <= t <= 1, (rows,) each."""
        a, b = (timesteps.draw("logit_normal", rows, rng, uniform_share=0.3) for _ in range(2))
        draws = rng.uniform((rows, 3))
        begins, ends, alike = draws[:, 0], draws[:, 1], draws[:, 2]
        t, r = torch.maximum(a, b), torch.minimum(a, b)
        t, r = torch.where(begins < self.first, 1.0, t), torch.where(ends < self.whole, 0.0, r)
        same = alike < self.instant
        return torch.where(same, a, t), torch.where(same, a, r)

    @torch.no_grad()
    def total_derivative(
        self, y: Tensor, t: Tensor, r: Tensor, label: Label, rows: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """du/dt along the net's velocity, (B, C, H, W), for y = x_t; 0 for rows with r = t, where it is not needed.

        Args:
            y: x_t (B, C, H, W).
            t: (B,).
            r: (B,).
            label: (B,).
            rows: those with r < t, on the CPU; None: they are found, for which a GPU has to finish.
        """
        out = torch.zeros_like(y)
        rows = (t > r).nonzero().flatten() if rows is None else rows
        if not len(rows):
            return out
        rows = rows.to(y.device, non_blocking=True)
        y, t, r, label = y[rows], t[rows], r[rows], label[rows]
        v = self.average(y, t, t, label)
        with torch.autocast(y.device.type, enabled=False), tf32(False):
            if self.derivative == "jvp":
                # The derivative of group_norm does not support channels-last, which one-channel pictures may have.
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
        self, noise: Tensor, label: Label, rng: Rng, *, steps: Annotated[int, Field(ge=1, le=1000)] = 2
    ) -> Samples:
        x, clock = noise, uniform_times(steps)
        for t, r in zip(clock[:-1], clock[1:], strict=True):
            at, to = (torch.full(x.shape[:1], each, device=x.device) for each in (t, r))
            u = self.average(x, at, to, label)
            self.show(x, x - t * u)
            x = x - (t - r) * u
        return Samples(x, steps)

    def exported(self, options: dict[str, Any]) -> Exported:
        call = Call(lambda x, t, r, label: self.net(x, t, label, r).float(), {"x": self.facts.shape, "t": (), "r": ()})
        return Exported("average_velocity", {"net": call}, {"steps": options["steps"]})

    @torch.no_grad()
    def encode(self, x: Tensor, label: Label, rng: Rng) -> Tensor:
        """The noise at the other end of x's ODE trajectory with velocity u(x_t, t, t), by the midpoint method."""
        return ode_encode(self._denoiser(label), self.path, x)

    @torch.no_grad()
    def decode(self, code: Tensor, label: Label, rng: Rng) -> Tensor:
        return ode_decode(self._denoiser(label), self.path, code)

    def _denoiser(self, label: Label) -> Denoise:
        def denoise(y: Tensor, t: Time) -> Tensor:
            at = torch.as_tensor(t, dtype=torch.float32, device=y.device).expand(len(y))
            return y - over(at, y) * self.average(y, at, at, label)

        return denoise
