"""What every family on a Gaussian path shares: samplers, inversion and guidance know the path, not the loss.

    x_t = alpha_t x + sigma_t eps        the net's prediction, whatever it is, means one x_0 (see maths/paths.py)

So every sampler works on every checkpoint, and a code of x is the noise at the other end of its ODE.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genflow.errors import UsageError
from genflow.families.base import Family, LogLikelihood, Samples
from genflow.maths import likelihood
from genflow.maths.guidance import Guided
from genflow.maths.paths import Path, Prediction, Time, along, spaced_times, uniform_times, x0_from
from genflow.maths.rng import Rng
from genflow.maths.samplers import SAMPLERS, Denoise
from genflow.specs import DataSpec

CODE_STEPS = 50  # midpoint steps from data to its code, and back
STRAIGHTNESS_STEPS = 50  # Euler steps along which a way's bends are measured
NEAR_DATA = 1e-3  # where the way to the code begins: at t = 0 itself the ODE has no value


class Gaussian(Family):
    """A net on a Gaussian path. A subclass gives the loss.

    Args:
        net: predicts `predict` from (x_t (B, C, H, W), path.net_time(t) (B,), label (B,)).
        facts: of the data.
        path: alpha and sigma.
        predict: what the net predicts.
    """

    learns_pairs = True

    def __init__(self, net: nn.Module, facts: DataSpec, path: Path, predict: Prediction) -> None:
        super().__init__(facts)
        self.net = net
        self.path, self.predict = path, predict

    def predict_x0(self, net: Callable[..., Tensor], x: Tensor, net_time: Time, alpha: Time, sigma: Time) -> Tensor:
        """x_0 as the net's answer means it, net(x, net_time) -> answer; what the net sees and says is known here."""
        return x0_from(net(x, net_time), self.predict, x, alpha, sigma)

    def denoiser(self, net: Guided, *, clip: bool = False, interval: tuple[float, float] = (0.0, 1.0)) -> Denoise:
        """denoise(x_t, t) -> x_0 of a net with its label bound.

        Args:
            net: counted and guided.
            clip: keep pictures in [-1, 1].
            interval: where guidance applies, as the noise's share sigma/(alpha + sigma).
        """
        low, high = interval

        def denoise(x: Tensor, t: Time) -> Tensor:
            inside = along(lambda s: float(low <= self.path.flow_time(s) <= high), t, x)
            within = inside.flatten() > 0 if isinstance(inside, Tensor) else inside > 0
            net_time = along(self.path.net_time, t, x)
            if isinstance(net_time, Tensor):
                net_time = net_time.flatten()
            alpha, sigma = along(self.path.alpha, t, x), along(self.path.sigma, t, x)
            x0 = self.predict_x0(lambda y, s: net(y, s, within), x, net_time, alpha, sigma)
            x0 = x0.clamp(-1, 1) if clip and not self.facts.is_points else x0
            self.show(x / (alpha + sigma), x0)
            return x0

        return denoise

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        label: Tensor,
        rng: Rng,
        *,
        sampler: Literal[
            "ddpm", "ddim", "euler", "midpoint", "heun", "ab2", "dpmpp_2m", "edm_heun", "rk45"
        ] = "ab2",
        steps: Annotated[int, Field(ge=1, le=1000)] = 10,
        spacing: Literal["auto", "uniform", "karras", "logsnr"] = "auto",
        eta: Annotated[float, Field(ge=0, le=1)] = 0.0,
        tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-5,
        guidance: Annotated[float, Field(ge=0, le=20)] = 1.0,
        guidance_low: Annotated[float, Field(ge=0, le=1)] = 0.0,
        guidance_high: Annotated[float, Field(ge=0, le=1)] = 1.0,
        clip: bool = False,
    ) -> Samples:
        """Walk from noise to data.

        Args:
            noise: (B, C, H, W).
            label: (B,).
            rng: for stochastic samplers.
            sampler: one of `maths.samplers.SAMPLERS`.
            steps: some samplers evaluate the net twice a step; Samples.nfe tells. For rk45, the first step only.
            spacing: where the steps are; auto: what the sampler is meant for.
            eta: noise of ddim.
            tolerance: of rk45.
            guidance: the scale w; 1 is none.
            guidance_low: the least share of noise, sigma/(alpha + sigma), at which guidance applies.
            guidance_high: the largest; outside, a step costs one evaluation. EDM's sigma is u/(1 - u).
            clip: keep the guessed data in [-1, 1].
        """
        net = Guided(self.net, label, self.facts.classes, 1.0 if self.weaker else guidance)
        chosen = SAMPLERS[sampler]
        options = {"ddim": {"eta": eta}, "rk45": {"tolerance": tolerance}}.get(sampler, {})
        times = spaced_times(self.path, steps, chosen.spacing if spacing == "auto" else spacing)
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
        """Let guidance lead away from a weaker run, instead of from what the net says without a label.

            x_0 = weak_0 + w (x_0 - weak_0)      (autoguidance, Karras et al., 2024)   https://arxiv.org/abs/2406.02507

        Both say what they think the data is, so the weaker run may be of any family on a Gaussian path.

        Raises:
            UsageError: the weaker run is on no Gaussian path, or on other data.
        """
        if not isinstance(weak, Gaussian) or weak.facts.shape != self.facts.shape:
            raise UsageError(
                f"{type(weak).title} on {weak.facts.shape} cannot guide {self.title} on {self.facts.shape}",
                "take a shorter run, or one with a smaller net, on the same data",
            )
        self.weaker = (weak,)

    def _autoguided(
        self, denoise: Denoise, theirs: Path, other: Denoise, weight: float, interval: tuple[float, float], clip: bool
    ) -> Denoise:
        """denoise, led away in the interval from the other, which lives on a path of its own."""
        path = self.path

        def led(x: Tensor, t: Time) -> Tensor:
            x0 = denoise(x, t)
            inside = along(lambda s: float(interval[0] <= path.flow_time(s) <= interval[1]), t, x)
            if not (bool(inside.any()) if isinstance(inside, Tensor) else inside):
                return x0

            def at(s: float) -> float:
                return theirs.time(path.flow_time(s))

            def scale(s: float) -> float:  # x_t / (alpha + sigma) is the same on both paths
                return (theirs.alpha(at(s)) + theirs.sigma(at(s))) / (path.alpha(s) + path.sigma(s))

            then = torch.tensor([at(s) for s in t.tolist()], device=x.device) if isinstance(t, Tensor) else at(t)
            guided = torch.lerp(other(x * along(scale, t, x), then), x0, weight)
            guided = guided.clamp(-1, 1) if clip and not self.facts.is_points else guided
            return torch.where(inside > 0, guided, x0) if isinstance(inside, Tensor) else guided

        return led

    def velocity(self, net: Guided) -> Callable[[Tensor, float], Tensor]:
        """dy/du of the straight path's variables (see maths/paths.py), with a value at u = 0 of a net that has one."""
        denoise = self.denoiser(net)

        def velocity(y: Tensor, u: float) -> Tensor:
            t = self.path.time(u)
            return (y - denoise(y * (self.path.alpha(t) + self.path.sigma(t)), t)) / u

        return velocity

    def ode_likelihood(self, x: Tensor, label: Tensor, rng: Rng, steps: int, probes: int) -> LogLikelihood:
        """The density that the ODE gives dequantized data. Four times as many steps for points: their densities are
        narrow, and cheap."""
        net, steps = Guided(self.net, label, self.facts.classes), 4 * steps if self.facts.is_points else steps
        dequantized = likelihood.dequantize(x, self.facts, rng)
        log_p, stderr, nfe = likelihood.ode_log_density(
            self.velocity(net), dequantized, rng, steps=steps, probes=probes
        )
        nats = likelihood.discrete_nats(log_p, self.facts)
        method = f"midpoint, {steps} and {steps // 2} steps, extrapolated"
        return LogLikelihood(nats, "ode-estimate", stderr, nfe, method)

    @torch.no_grad()
    def straightness(self, noise: Tensor, label: Tensor) -> Tensor:
        """The variance of the velocity along each sample's way, as a share of the way's length squared, (B,).

            S = mean_u ||v(y_u, u) - (y_1 - y_0)||^2 / ||y_1 - y_0||^2      along the ODE on the straight path

        0 for a straight way, which one Euler step walks exactly (Liu et al., 2022, equation 5, per sample).
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
    def encode(self, x: Tensor, label: Tensor, rng: Rng) -> Tensor:
        """The noise at the other end of x's ODE (DDIM inversion, on whatever path), by the midpoint method."""
        return ode_encode(self.denoiser(Guided(self.net, label, self.facts.classes)), self.path, x)

    @torch.no_grad()
    def decode(self, code: Tensor, label: Tensor, rng: Rng) -> Tensor:
        """The data at the end of the noise's ODE, as finely as `encode` went there."""
        return ode_decode(self.denoiser(Guided(self.net, label, self.facts.classes)), self.path, code)


def ode_encode(denoise: Denoise, path: Path, x: Tensor) -> Tensor:
    """The noise at the other end of x's ODE, by the midpoint method."""
    times = [NEAR_DATA + (1 - NEAR_DATA) * (1 - t) for t in uniform_times(CODE_STEPS)]
    return SAMPLERS["midpoint"].run(denoise, path, x, times, None)


def ode_decode(denoise: Denoise, path: Path, code: Tensor) -> Tensor:
    """The data at the end of the noise's ODE, as finely as `ode_encode` went there."""
    return SAMPLERS["midpoint"].run(denoise, path, code, uniform_times(CODE_STEPS), None)
