"""Consistency: one output along the whole path from noise to data, so that one or two steps are enough.

A trained run on any Gaussian path is a function f(y, u) -> x_0 of the straight path's variables (maths/paths.py),

    y_u = (1 - u) x_0 + u eps,   f(y, 0) = y

which at first is the *mean* of the data from which y_u may come. It is tuned until neighbours on a path agree:

    loss = E w(u, r) d(f(y_u, u), stop_gradient f(y_r, r)),   w = 1/(u - r),   d(a, b) = sqrt(||a - b||^2 + c^2) - c
    tune:     y_r = (1 - r) x + r eps          the same data and noise, without a teacher (ECT)
    distill:  y_r = the teacher's ODE, one midpoint step from (y_u, u)      (CD)

The next time is r = u - max(ratio u, least), and 0 where r would be below `least`. Without that minimum the chain
has many tiny links near the data, and their errors stay in every sample.

With a small c, d is a distance, and the expected distance is minimal at the median, not at the mean. In many
dimensions the two are close; on points they are not. A tuned run on points whose smaller mode has 30 % of the data drew
17 to 22 % of its samples from it with c = 0.01, and 29 to 31 % with c = 1 (1,500 steps, four seeds, two evaluations).

Sampling: f(noise); each further step adds new noise and evaluates f again.

References:
    Consistency Models (Song et al., 2023), algorithms 1 and 2            https://arxiv.org/abs/2303.01469
    Improved Techniques for Training Consistency Models (Song, Dhariwal, 2023), for the metric
    https://arxiv.org/abs/2310.14189
    Consistency Models Made Easy (Geng et al., 2024)                      https://arxiv.org/abs/2406.14548
"""

import copy
import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genflow import families
from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.families.base import Call, Exported, Family, Samples
from genflow.families.gaussian import Gaussian, denoise_straight, midpoint_velocity, path_values
from genflow.maths.guidance import Guided, drop_labels
from genflow.maths.paths import Time, over
from genflow.maths.rng import Rng
from genflow.specs import DataSpec, NetSpec
from genflow.text import Label

RATIO = {"tune": (0.25, 0.05), "distill": (0.5, 0.5)}  # at the start and at the end of training
LEAST = {"tune": 0.05, "distill": 0.25}  # the teacher's step stays accurate over a longer interval than a straight line
LEAST_HUBER = 1.0  # for points, per square root of a dimension: nearly the squared distance
LARGEST_RATIO = 80.0  # of noise to data, EDM's sigma_max: beyond it, x_0 from eps is only rounding error


class Consistency(Family):
    """A trained run of a Gaussian path, tuned to agree with itself.

    Args:
        nets: {"net": the source's}.
        facts: of the data.
        source: the family section of the run it starts from; set by `init`.
        mode: tune on the data, or distill the source's ODE.
        least: the shortest step of the chain, in u; 0: the mode's default.
        ratio: the step as a share of u at the end of training; 0: the mode's default.
        first: share of rows that train at pure noise, where one-step sampling starts.
        huber: c of the metric, per square root of a dimension; at least 1 for points.
        guidance: of the teacher in mode `distill`; 1: no guidance.
        forget: share of labels dropped during training, so that sampling without a label works.
    """

    title = "Consistency"
    objective = "agreement along the way from noise to data"
    steps = "1 to 4"
    teacher = "required"

    def __init__(
        self,
        nets: dict[str, nn.Module],
        facts: DataSpec,
        *,
        source: dict[str, Any] = {},  # noqa: B006  never written to
        mode: Literal["tune", "distill"] = "tune",
        least: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
        ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        first: Annotated[float, Field(ge=0, le=1)] = 0.25,
        huber: Annotated[float, Field(gt=0, le=10)] = 0.01,
        guidance: Annotated[float, Field(ge=0, le=20)] = 1.0,
        forget: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    ) -> None:
        super().__init__(facts)
        own, options = _source(source)
        self.net = nets["net"]
        try:
            view = own(nets, facts, **options)  # type: ignore[call-arg, arg-type]
        except TypeError as error:
            raise UsageError(f"family.source: {error}", "omit it: --init sets it") from error
        assert isinstance(view, Gaussian)
        # Tuples, so that neither is a submodule: the first shares this net, the second is not part of the run.
        self._view: tuple[Gaussian, ...] = (view,)
        self._teacher: tuple[Gaussian, ...] = ()
        self.mode, self.first = mode, first
        self.huber = max(huber, LEAST_HUBER) if facts.is_points else huber
        self.guidance, self.forget = guidance, forget
        self.least = least or LEAST[mode]
        self.ratios = (max(RATIO[mode][0], ratio), ratio) if ratio else RATIO[mode]
        self.ratio = self.ratios[0]
        end = view.path.flow_time(1.0)
        self.nearest = view.path.flow_time(view.path.cleanest)
        self.farthest = min(end, LARGEST_RATIO / (1 + LARGEST_RATIO)) if view.predict == "eps" else end

    @classmethod
    def ports(cls, facts: DataSpec, **options: object) -> dict[str, NetSpec]:
        own, own_options = _source(options.get("source", {}))
        return own.ports(facts, **own_options)

    @classmethod
    def inherit(cls, options: dict[str, Any]) -> dict[str, Any]:
        source = options["source"] if options["kind"] == "consistency" else options
        _source(source)
        return {"source": source}

    def init_from(self, source: Family) -> None:
        view = source._view[0] if isinstance(source, Consistency) else source
        if type(view) is not type(self._view[0]):
            raise UsageError(
                f"{self.title} cannot start from this run of {view.title}: family.source says {self._view[0].title}",
                "omit family.source: --init sets it",
            )
        super().init_from(source)
        if self.mode == "distill":
            if isinstance(source, Consistency):
                raise UsageError(
                    "a run of Consistency has no ODE to distill", "--set family.mode=tune, or --init its own source"
                )
            assert isinstance(source, Gaussian)
            self._teacher = (copy.deepcopy(source).eval().requires_grad_(False),)

    def prepare(self, position: float) -> None:
        begin, end = self.ratios
        self.ratio = begin * (end / begin) ** min(1.0, position)

    def answer(self, net: Guided, y: Tensor, u: Time) -> Tensor:
        """f(y, u), the estimate of x_0, for y (B, ...) at u, a scalar or (B,), within nearest to farthest."""
        return denoise_straight(self._view[0], net, y, u)

    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        losses, apart = self._losses(batch, rng)
        return losses.mean(), {"apart": (apart / self.facts.dims).mean()}

    def row_losses(self, batch: Batch, rng: Rng) -> Tensor:
        return self._losses(batch, rng)[0]

    def _losses(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        """The loss and the squared distance of each row, (B,) each."""
        x = batch.x
        eps = rng.normal(x.shape) if batch.noise is None else batch.noise
        times = rng.on("cpu")
        u, far = times.uniform((len(x),)), times.uniform((len(x),)) < self.first
        u = (torch.where(far, 1.0, u) * self.farthest).clamp(min=self.nearest)
        label = drop_labels(batch.label, self.facts.classes, self.forget, rng)
        r = self.next(u)
        y = torch.lerp(x, eps, over(u, x))
        guess = self.answer(Guided(self.net, label, self.facts.classes), y, u)
        with torch.no_grad():
            before = torch.lerp(x, eps, over(r, x)) if self.mode == "tune" else self._teach(y, u, r, label)
            aim = self.answer(Guided(self.net, label, self.facts.classes), before, r.clamp(min=self.nearest))
            aim = torch.where(over(r, x) > 0, aim, before)  # f(y, 0) = y
        apart = (guess - aim).flatten(1).square().sum(1)
        c = self.huber * math.sqrt(self.facts.dims)
        distance = (apart + c * c).sqrt() - c
        width = (u - r).to(x.device, non_blocking=True)
        return distance / width / math.sqrt(self.facts.dims), apart

    def next(self, u: Tensor) -> Tensor:
        """The next time r (B,) of the chain towards the data; 0 where it would be below `least`."""
        r = u - (self.ratio * u).clamp(min=self.least)
        return r.masked_fill(r < self.least, 0.0)

    def _teach(self, y: Tensor, u: Tensor, r: Tensor, label: Label) -> Tensor:
        """The teacher's ODE dy/du = (y - x_0)/u from u to r by one midpoint step: 2 evaluations, 4 with guidance."""
        if not self._teacher:
            raise UsageError("there is no teacher to distill", "start the run with --init")
        teacher = self._teacher[0].to(y.device)
        velocity = teacher.velocity(Guided(teacher.net, label, self.facts.classes, self.guidance))
        return y - over(u - r, y) * midpoint_velocity(velocity, y, u, r)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        label: Label,
        rng: Rng,
        *,
        steps: Annotated[int, Field(ge=1, le=4)] = 2,
        middle: Annotated[float, Field(gt=0, lt=1)] = 0.6,
    ) -> Samples:
        """Multistep consistency sampling (Song et al., 2023, algorithm 1).

        Args:
            noise: (B, C, H, W).
            label: (B,).
            rng: of the noise that is added before each further step.
            steps: evaluations; step k of n starts at u = (1 - k/n)^p.
            middle: u at which the second of two steps starts; it sets p.
        """
        net = Guided(self.net, label, self.facts.classes)
        power = math.log(middle) / math.log(0.5)
        x = noise
        for k in range(steps):
            u = self.farthest * (1 - k / steps) ** power
            y = u * noise if k == 0 else torch.lerp(x, rng.normal(x.shape), u)
            x = self.answer(net, y, u)
            x = x.clamp(-1, 1) if self.facts.bounded else x
            self.show(y, x)
        return Samples(x, net.nfe)

    def exported(self, options: dict[str, Any]) -> Exported:
        values = path_values(self._view[0], False) | {
            "steps": options["steps"], "power": math.log(options["middle"]) / math.log(0.5), "inverse": True,
            "farthest": self.farthest, "bounded": self.facts.bounded, "interval": (0.0, 1.0),
        }  # fmt: skip
        call = Call(lambda x, t, label: self.net(x, t, label).float(), {"x": self.facts.shape, "t": ()})
        return Exported("jumps", {"net": call}, values)


def _source(options: object) -> tuple[type[Family], dict[str, Any]]:
    """The source's class and options.

    Raises:
        UsageError: the source has no Gaussian path.
    """
    given = dict(options) if isinstance(options, dict) else {}
    kind = str(given.pop("kind", "flow_matching"))
    own = families.family_class(kind)
    if not issubclass(own, Gaussian):
        raise UsageError(
            f"Consistency starts from a run with a Gaussian path, and {own.title} has none",
            "--init a run of flow_matching or ddpm",
        )
    return own, given
