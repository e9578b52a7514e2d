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

A run that starts from a trained one can learn from its ODE in place of the data (`mode: distill`). An average over a
step is that of its two parts, of which the first is one midpoint step of the teacher, with velocity v:

    loss = E w ||u_net(x_t, r, t) - p v - (1 - p) stop_gradient(u_net(x_s, r, s))||^2
    x_s = x_t - (t - s) v,   r <= s <= t,   p = (t - s)/(t - r)

So there is neither a derivative nor a noisy target. Where r = t, p is 1 and the target is the teacher's velocity.

References:
    Mean Flows for One-step Generative Modeling (Geng et al., 2025)        https://arxiv.org/abs/2505.13447
    Improved Mean Flows (Geng et al., 2025), for the loss in V             https://arxiv.org/abs/2512.02012
    Consistency Trajectory Models (Kim et al., 2024), equation 9, for distillation between any two times
    https://arxiv.org/abs/2310.02279
"""

import copy
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.families.base import Call, Exported, Family, Samples
from genflow.families.gaussian import Gaussian, Velocity, midpoint_velocity, need_prediction, ode_decode, ode_encode
from genflow.maths import timesteps
from genflow.maths.guidance import Guided, drop_labels
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
SHARES = {"data": (0.75, 0.25, 0.2), "distill": (0.1, 0.5, 0.3)}  # of `instant`, `whole` and `first`
POWER = {"data": 0.25, "distill": 0.5}
TEACHER_STEP = 0.25  # the shortest step of the teacher, in t: the chain of targets has few links, each with an error
ERROR_FLOOR = 1e-3  # added to the mean squared error in the weight, so that very small errors have a finite weight


class MeanFlow(Family):
    """A net with two time inputs on the straight path.

    Args:
        nets: {"net": predicts u from (x_t (B, C, H, W), 1000 t (B,), label (B,), 1000 r (B,))}.
        facts: of the data.
        mode: learn from the data, or distill the ODE of the run it starts from, which is the default of such a run.
        instant: share of rows with r = t, for which u is the velocity; null: 0.75, and 0.1 to distill.
        whole: share of the other rows with r = 0, for steps that end at the data; null: 0.25, and 0.5 to distill.
        first: share of the other rows with t = 1, for steps that start at noise; null: 0.2, and 0.3 to distill.
        derivative: how du/dt is computed: a secant of two evaluations, or exact (jvp) by forward-mode differentiation.
        power: exponent of the weight; 0: no weight, which is least squares; 1: nearly the logarithm of the error;
            null: 0.25; to distill 0.5, and 0 for points, whose mean and median differ.
        guidance: of the teacher in mode `distill`; 1: no guidance.
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
        mode: Literal["data", "distill"] = "data",
        instant: Annotated[float, Field(ge=0, le=1)] | None = None,
        whole: Annotated[float, Field(ge=0, le=1)] | None = None,
        first: Annotated[float, Field(ge=0, le=1)] | None = None,
        derivative: Literal["secant", "jvp"] = "secant",
        power: Annotated[float, Field(ge=0, le=1)] | None = None,
        guidance: Annotated[float, Field(ge=0, le=20)] = 1.0,
        forget: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    ) -> None:
        super().__init__(facts)
        self.net = nets["net"]
        self.path = StraightPath()
        self._teacher: tuple[Gaussian | MeanFlow, ...] = ()  # no submodule, because it is not part of the run
        given = (instant, whole, first)
        shares = (usual if own is None else own for own, usual in zip(given, SHARES[mode], strict=True))
        self.instant, self.whole, self.first = shares
        if power is None:
            power = 0.0 if mode == "distill" and facts.is_points else POWER[mode]
        self.mode, self.derivative, self.power = mode, derivative, power
        self.guidance, self.forget = guidance, forget

    @classmethod
    def ports(cls, facts: DataSpec, **options: object) -> dict[str, NetSpec]:
        return {"net": NetSpec(facts.shape, facts.shape, time=True, second_time=True)}

    @classmethod
    def inherit(cls, options: dict[str, Any]) -> dict[str, Any]:
        return {"mode": options.get("mode", "data") if options["kind"] == "meanflow" else "distill"}

    def init_from(self, source: Family) -> None:
        need_prediction(self, source, "velocity")
        super().init_from(source)
        if self.mode == "distill":
            if not (isinstance(source, Gaussian | MeanFlow) and isinstance(source.path, StraightPath)):
                raise UsageError(
                    f"{source.title} has no ODE on straight paths to distill",
                    "--init a run of flow_matching, or --set family.mode=data",
                )
            self._teacher = (copy.deepcopy(source).eval().requires_grad_(False),)

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
        """The error of each row, whether its target is finite, and the size of the target's correction, (B,) each."""
        x = batch.x
        eps = rng.normal(x.shape) if batch.noise is None else batch.noise
        times = self.times(len(x), rng.on("cpu"))
        rows = (times[0] > times[1]).nonzero().flatten()
        t, r = (each.to(x.device, non_blocking=True) for each in times)
        label = drop_labels(batch.label, self.facts.classes, self.forget, rng)
        y = torch.lerp(x, eps, over(t, x))
        u = self.average(y, t, r, label)
        if self.mode == "distill":
            aim, correction = self._teach(y, t, r, label)
        else:
            correction = over(t - r, x) * self.total_derivative(y, t, r, label, rows)
            aim = eps - x - correction
        usable = correction.flatten(1).isfinite().all(1)  # rows whose derivative overflows are left out
        aim = torch.where(over(usable, x) > 0, aim, eps - x)
        correction = torch.where(over(usable, x) > 0, correction, 0.0)
        return (u - aim).square().flatten(1).mean(1), usable, correction.square().flatten(1).mean(1)

    @torch.no_grad()
    def _teach(self, y: Tensor, t: Tensor, r: Tensor, label: Label) -> tuple[Tensor, Tensor]:
        """The average velocity from t to r, whose first part is the teacher's, and what the second part adds to it."""
        if not self._teacher:
            raise UsageError("there is no teacher to distill", "start the run with --init")
        teacher = self._teacher[0].to(y.device)
        velocity = _ode(teacher, label, self.guidance)
        s = torch.maximum(t - ((t - r) / 2).clamp(min=TEACHER_STEP), r)
        v = midpoint_velocity(velocity, y, t, s)
        rest = self.average(y - over(t - s, y) * v, s, r, label)
        share = (s - r) / (t - r).clamp(min=1e-6)
        added = over(share, y) * (rest - v)
        return v + added, added

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


def _ode(source: Gaussian | MeanFlow, label: Label, guidance: float) -> Velocity:
    """The velocity of a trained run's ODE; for MeanFlow u(x_t, t, t)."""
    if isinstance(source, Gaussian):
        return source.velocity(Guided(source.net, label, source.facts.classes, guidance))
    net = Guided(lambda x, t, label: source.net(x, t, label, t), label, source.facts.classes, guidance)
    return lambda y, u: net(y, 1000 * u)
