"""The parts that all families on a Gaussian path share: samplers, inversion, guidance and the ODE likelihood.

    x_t = alpha_t x + sigma_t eps        any prediction of the net can be converted to x_0 (maths/paths.py)

These parts depend on the path and not on the loss. So every sampler works on every checkpoint. The code of x is the
noise at the other end of its ODE trajectory.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genflow.errors import UsageError
from genflow.families.base import SMALL_LATENTS, Call, Exported, Family, LogLikelihood, Samples
from genflow.maths import likelihood, timesteps
from genflow.maths.guidance import Guided
from genflow.maths.paths import (
    DiscretePath,
    EdmPath,
    Path,
    Prediction,
    StraightPath,
    Time,
    along,
    over,
    ratio_ends,
    spaced_times,
    uniform_times,
    x0_from,
)
from genflow.maths.rng import Rng
from genflow.maths.samplers import SAMPLERS, Denoise
from genflow.specs import DataSpec
from genflow.text import Label

TABLE_STEPS = 1000  # of the table of a path that an exported sampler has no formula for
HEUN_STEPS = 50  # of an exported run whose sampler is rk45
CODE_STEPS = 50  # midpoint steps of encoding, and of decoding
STRAIGHTNESS_STEPS = 50  # Euler steps for `straightness`
Velocity = Callable[[Tensor, Time], Tensor]  # velocity(y, u) = dy/du for y (B, ...) at u, a scalar or (B,)
LARGEST_SHIFT = 3.0  # of Stable Diffusion 3 at 1024 pixels
NEAR_DATA = 1e-3  # the time at which encoding starts, because the ODE is undefined at t = 0


class Gaussian(Family):
    """A net on a Gaussian path. A subclass defines the loss.

    Args:
        net: predicts `predict` from (x_t (B, C, H, W), path.net_time(t) (B,), label (B,)).
        facts: of the data.
        path: the path, which gives alpha and sigma.
        predict: what the net predicts.
    """

    learns_pairs = True

    def __init__(self, net: nn.Module, facts: DataSpec, path: Path, predict: Prediction) -> None:
        super().__init__(facts)
        self.net = net
        self.path, self.predict = path, predict

    def init_from(self, source: Family) -> None:
        need_prediction(self, source, self.predict)
        super().init_from(source)

    def predict_x0(self, net: Callable[..., Tensor], x: Tensor, net_time: Time, alpha: Time, sigma: Time) -> Tensor:
        """Convert the net's output to x_0; a subclass overrides it if it scales inputs or outputs.

        Args:
            net: net(x, net_time) -> prediction, (B, C, H, W).
            x: x_t (B, C, H, W).
            net_time: the net's time input, for all rows or per row (B,).
            alpha: of the path at that time, broadcast to x.
            sigma: of the path at that time, broadcast to x.
        """
        return x0_from(net(x, net_time), self.predict, x, alpha, sigma)

    def denoiser(self, net: Guided, *, clip: bool = False, interval: tuple[float, float] = (0.0, 1.0)) -> Denoise:
        """The function denoise(x_t, t) -> x_0 that samplers need.

        Args:
            net: the net with its label and guidance.
            clip: clamp x_0 of pictures to [-1, 1].
            interval: where guidance applies, as a range of sigma/(alpha + sigma).
        """
        low, high = interval

        def denoise(x: Tensor, t: Time) -> Tensor:
            within = _inside(self.path, t, low, high)
            net_time = along(self.path.net_time, t, x)
            if isinstance(net_time, Tensor):
                net_time = net_time.flatten()
            alpha, sigma = along(self.path.alpha, t, x), along(self.path.sigma, t, x)
            x0 = self.predict_x0(lambda y, s: net(y, s, within), x, net_time, alpha, sigma)
            x0 = x0.clamp(-1, 1) if clip and self.facts.bounded else x0
            self.show(x / (alpha + sigma), x0)
            return x0

        return denoise

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        label: Label,
        rng: Rng,
        *,
        sampler: Literal[
            "ddpm", "ddim", "euler", "midpoint", "heun", "ab2", "dpmpp_2m", "edm_heun", "rk45"
        ] = "ab2",
        steps: Annotated[int, Field(ge=1, le=1000)] = 10,
        spacing: Literal["auto", "uniform", "karras", "logsnr"] = "auto",
        shift: Annotated[float, Field(ge=1, le=100)] = 1.0,
        eta: Annotated[float, Field(ge=0, le=1)] = 0.0,
        tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-5,
        guidance: Annotated[float, Field(ge=0, le=20)] = 1.0,
        guidance_low: Annotated[float, Field(ge=0, le=1)] = 0.0,
        guidance_high: Annotated[float, Field(ge=0, le=1)] = 1.0,
        clip: bool = False,
    ) -> Samples:
        """Integrate from noise to data.

        Args:
            noise: (B, C, H, W).
            label: (B,).
            rng: source of noise for stochastic samplers.
            sampler: one of `maths.samplers.SAMPLERS`.
            steps: the number of steps; some samplers evaluate the net twice per step (see Samples.nfe). For rk45 it
                gives only the size of the first step.
            spacing: the time grid; auto: the one for which the sampler is designed.
            shift: moves the times of any spacing towards noise, t' = s t/(1 + (s - 1) t); 1: not at all. Stable
                Diffusion 3 uses 3 for pictures of 1024 pixels.
            eta: amount of noise in ddim; 0 is deterministic.
            tolerance: error tolerance of rk45.
            guidance: the guidance scale w; 1 is no guidance.
            guidance_low: the smallest u = sigma/(alpha + sigma) at which guidance applies; EDM's sigma is u/(1 - u).
            guidance_high: the largest u at which guidance applies. Outside the interval a step takes one evaluation.
            clip: clamp the estimate of x_0 to [-1, 1] in every step; for pictures only.
        """
        net = Guided(self.net, label, self.facts.classes, 1.0 if self.weaker else guidance)
        chosen = SAMPLERS[sampler]
        options = {"ddim": {"eta": eta}, "rk45": {"tolerance": tolerance}}.get(sampler, {})
        times = spaced_times(self.path, steps, chosen.spacing if spacing == "auto" else spacing)
        times = timesteps.shifted(torch.tensor(times, dtype=torch.float64), shift).tolist()
        interval = guidance_low, guidance_high
        denoise, counted = self.denoiser(net, clip=clip, interval=interval), [net]
        for weak in self.weaker if guidance != 1 else ():
            assert isinstance(weak, Gaussian)
            counted.append(Guided(weak.net, label, self.facts.classes))
            denoise = self._autoguided(denoise, weak.path, weak.denoiser(counted[-1]), guidance, interval, clip)
        start = noise * (self.path.sigma(times[0]) / self.path.sigma(1.0))
        x = chosen.run(denoise, self.path, start, times, rng, **options)
        return Samples(x, sum(each.nfe for each in counted))

    def guided_by(self, weak: Family) -> None:
        """Guide away from the prediction of a weaker run instead of the prediction without a label (autoguidance).

            x_0 = weak_0 + w (x_0 - weak_0)      (Karras et al., 2024)   https://arxiv.org/abs/2406.02507

        Guidance combines estimates of x_0, so the weaker run can be of any family on a Gaussian path.

        Raises:
            UsageError: the weaker run is not on a Gaussian path, or was trained on data of another shape or on other
                captions.
        """
        if not isinstance(weak, Gaussian) or weak.facts.shape != self.facts.shape:
            raise UsageError(
                f"{type(weak).title} on {weak.facts.shape} cannot guide {self.title} on {self.facts.shape}",
                "use a shorter run, or one with a smaller net, on the same data",
            )
        if weak.facts.text != self.facts.text:
            theirs, ours = (f.text.encoder if f.text else "none" for f in (weak.facts, self.facts))
            raise UsageError(
                f"the captions of the guiding run ({theirs}) are not those of this run ({ours})",
                "use a shorter run, or one with a smaller net, on the same data",
            )
        own = next(self.parameters())
        self.weaker = (weak.to(own.device),)

    def _autoguided(
        self, denoise: Denoise, theirs: Path, other: Denoise, weight: float, interval: tuple[float, float], clip: bool
    ) -> Denoise:
        """`denoise` with autoguidance inside the interval, away from `other`, whose path is `theirs`."""
        path = self.path

        def led(x: Tensor, t: Time) -> Tensor:
            x0 = denoise(x, t)
            inside = _inside(path, t, *interval)
            if not (bool(inside.any()) if isinstance(inside, Tensor) else inside):
                return x0

            def at(s: float) -> float:
                return theirs.time(path.flow_time(s))

            def scale(s: float) -> float:  # x_t / (alpha + sigma) is equal on both paths
                return (theirs.alpha(at(s)) + theirs.sigma(at(s))) / (path.alpha(s) + path.sigma(s))

            then = torch.tensor([at(s) for s in t.tolist()], device=t.device) if isinstance(t, Tensor) else at(t)
            guided = torch.lerp(other(x * along(scale, t, x), then), x0, weight)
            guided = guided.clamp(-1, 1) if clip and self.facts.bounded else guided
            return torch.where(over(inside, x).bool(), guided, x0) if isinstance(inside, Tensor) else guided

        return led

    def path_options(self) -> dict[str, Any]:
        """What else the template of an exported sampler needs of the path."""
        return {}

    def exported(self, options: dict[str, Any]) -> Exported:
        """The net, and one of the samplers; rk45, whose steps depend on the data, is exported as heun."""
        sampler, note, steps = options["sampler"], "", options["steps"]
        if sampler == "rk45":
            sampler, steps = "heun", HEUN_STEPS
            note = f"The run samples with rk45, whose steps depend on the data; this is heun with {steps} steps."
        eta = {"ddpm": 1.0, "ddim": options["eta"]}.get(sampler, 0.0)
        spacing = SAMPLERS[sampler].spacing if options["spacing"] == "auto" else options["spacing"]
        low, high = ratio_ends(self.path)
        values = path_values(self, options["clip"]) | {
            "sampler": sampler if eta or sampler not in ("ddpm", "ddim") else "euler", "steps": steps, "eta": eta,
            "spacing": spacing, "shift": options["shift"], "guidance": options["guidance"], "low": low, "high": high,
            "interval": (options["guidance_low"], options["guidance_high"]),
            "inverse": spacing != "uniform" or sampler == "midpoint",
        }  # fmt: skip
        call = Call(lambda x, t, label: self.net(x, t, label).float(), {"x": self.facts.shape, "t": ()})
        return Exported("ode", {"net": call}, values, note)

    def velocity(self, net: Guided) -> Velocity:
        """dy/du in the straight path's variables (maths/paths.py), for u > 0.

        A subclass whose net predicts the velocity overrides it; the result is then defined at u = 0, too.
        """

        def velocity(y: Tensor, u: Time) -> Tensor:
            return (y - denoise_straight(self, net, y, u)) / along(lambda each: each, u, y)

        return velocity

    def ode_likelihood(self, x: Tensor, label: Label, rng: Rng, steps: int, probes: int) -> LogLikelihood:
        """The log-likelihood of dequantized data along the ODE (maths/likelihood.py).

        Points use four times as many steps, because their densities are narrow and cheap to compute.
        """
        net, steps = Guided(self.net, label, self.facts.classes), 4 * steps if self.facts.is_points else steps
        dequantized = likelihood.dequantize(x, self.facts, rng)
        log_p, stderr, nfe = likelihood.ode_log_density(
            self.velocity(net), dequantized, rng, steps=steps, probes=probes
        )
        nats = likelihood.discrete_nats(log_p, self.facts)
        method = f"midpoint, {steps} and {steps // 2} steps, extrapolated"
        return LogLikelihood(nats, "ode-estimate", stderr, nfe, method)

    @torch.no_grad()
    def straightness(self, noise: Tensor, label: Label) -> Tensor:
        """The variance of the velocity along each sample's trajectory, relative to its squared displacement, (B,).

            S = mean_u ||v(y_u, u) - (y_1 - y_0)||^2 / ||y_1 - y_0||^2      along the ODE on the straight path

        It is 0 for a straight trajectory, on which one Euler step is exact (Liu et al., 2022, equation 5, per sample).
        """
        velocity = self.velocity(Guided(self.net, label, self.facts.classes))
        y, velocities = noise, []
        grid = uniform_times(STRAIGHTNESS_STEPS)
        for a, b in zip(grid[:-1], grid[1:], strict=True):
            velocities.append(velocity(y, a))
            y = y + (b - a) * velocities[-1]
        displacement = noise - y
        bends = torch.stack([(v - displacement).square().flatten(1).sum(1) for v in velocities]).mean(0)
        return bends / displacement.square().flatten(1).sum(1)

    @torch.no_grad()
    def encode(self, x: Tensor, label: Label, rng: Rng) -> Tensor:
        """The noise at the other end of x's ODE trajectory (DDIM inversion, on any path), by the midpoint method."""
        return ode_encode(self.denoiser(Guided(self.net, label, self.facts.classes)), self.path, x)

    @torch.no_grad()
    def decode(self, code: Tensor, label: Label, rng: Rng) -> Tensor:
        """The data at the end of the code's ODE trajectory, with as many steps as `encode`."""
        return ode_decode(self.denoiser(Guided(self.net, label, self.facts.classes)), self.path, code)


def latent_shift(facts: DataSpec) -> float:
    """The default shift of training times towards noise (maths/timesteps.py): D / 512, within 1 to 3; 1 for pictures.

    Large latents keep their coarse structure at more noise than small ones. Stable Diffusion 3 shifts by the square
    root of the ratio of sizes (Esser et al., 2024, section 5.3.2). The steeper rule was measured after four CPU minutes
    (docs/decisions/0022-nets-and-rates-on-latents.md).
    """
    return min(max(facts.dims / SMALL_LATENTS, 1.0), LARGEST_SHIFT) if facts.is_latents else 1.0


def path_values(family: Gaussian, clip: bool) -> dict[str, Any]:
    """The path of a family, and what its net predicts, as the template of an exported sampler names them."""
    path = family.path
    kind = {StraightPath: "straight", DiscretePath: "discrete", EdmPath: "edm"}.get(type(path), "table")
    found: dict[str, Any] = {"path": kind, "predict": family.predict, "clip": clip and family.facts.bounded}
    found["farthest_u"] = path.flow_time(1.0)
    if kind == "table":
        times = [max(t, path.cleanest) for t in uniform_times(TABLE_STEPS)[::-1]]
        found["clocks"] = [path.net_time(t) for t in times]
        found |= {name: [f(t) for t in uniform_times(TABLE_STEPS)[::-1]]
                  for name, f in (("alphas", path.alpha), ("sigmas", path.sigma))}  # fmt: skip
    return found | family.path_options()


def denoise_straight(family: Gaussian, net: Guided, y: Tensor, u: Time) -> Tensor:
    """E[x_0 | y_u] by a family's net, for y (B, ...) on the straight path at u, a scalar or (B,)."""
    path = family.path
    t: Time = torch.tensor([path.time(each) for each in u.tolist()]) if isinstance(u, Tensor) else path.time(u)
    return family.denoiser(net)(y * along(lambda s: path.alpha(s) + path.sigma(s), t, y), t)


def midpoint_velocity(velocity: Velocity, y: Tensor, u: Tensor, r: Tensor) -> Tensor:
    """v of a midpoint step along an ODE, y_r = y_u - (u - r) v, by two evaluations.

    Args:
        velocity: of the ODE.
        y: y_u (B, ...).
        u: (B,).
        r: (B,); where it is u, v is the velocity itself.
    """
    middle = (u + r) / 2
    return velocity(y - over(u - middle, y) * velocity(y, u), middle)


def need_prediction(family: Family, source: Family, predict: Prediction) -> None:
    """Check that the net of the run to start from predicts the same quantity.

    Args:
        family: of the new run.
        source: the run to start from; one without a Gaussian path passes.
        predict: what the net of the new run predicts.

    Raises:
        UsageError: it predicts another one, so its outputs would be misread.
    """
    if isinstance(source, Gaussian) and source.predict != predict:
        other = f"--init a run that predicts {predict}, or train without --init"
        raise UsageError(
            f"{family.title} cannot start from this run of {source.title}: it predicts {source.predict}, not {predict}",
            f"--set family.predict={source.predict}" if type(source) is type(family) else other,
        )


def _inside(path: Path, t: Time, low: float, high: float) -> bool | Tensor:
    """Whether u = sigma/(alpha + sigma) is in an interval: at one time, or per row (B,) on the device of the times."""
    if not isinstance(t, Tensor):
        return low <= path.flow_time(t) <= high
    if (low, high) == (0.0, 1.0):
        return True
    return torch.tensor([low <= path.flow_time(s) <= high for s in t.tolist()], device=t.device)


def ode_encode(denoise: Denoise, path: Path, x: Tensor) -> Tensor:
    """The noise at the other end of x's ODE trajectory, by the midpoint method; x is (B, C, H, W)."""
    times = [NEAR_DATA + (1 - NEAR_DATA) * (1 - t) for t in uniform_times(CODE_STEPS)]
    return SAMPLERS["midpoint"].run(denoise, path, x, times, None)


def ode_decode(denoise: Denoise, path: Path, code: Tensor) -> Tensor:
    """The data at the end of the code's ODE trajectory, with as many steps as `ode_encode`; code is (B, C, H, W)."""
    return SAMPLERS["midpoint"].run(denoise, path, code, uniform_times(CODE_STEPS), None)
