"""What every family on a Gaussian path shares: samplers, inversion and guidance know the path, not the loss.

    x_t = alpha_t x + sigma_t eps        the net's prediction, whatever it is, means one x_0 (see maths/paths.py)

So every sampler works on every checkpoint, and a code of x is the noise at the other end of its ODE.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genflow.facts import Facts
from genflow.families.base import Family, Samples
from genflow.maths.guidance import Guided
from genflow.maths.paths import Path, Prediction, uniform_times, x0_from
from genflow.maths.samplers import SAMPLERS, Denoise
from genflow.maths.seeds import Rng

CODE_STEPS = 50  # midpoint steps from data to its code, and back
NEAR_DATA = 1e-3  # where the way to the code begins: at t = 0 itself the ODE has no value


class Gaussian(Family):
    """A net on a Gaussian path. A subclass gives the loss.

    Args:
        net: predicts `predict` from (x_t (B, C, H, W), path.net_time(t) (B,), label (B,)).
        facts: of the data.
        path: alpha and sigma.
        predict: what the net predicts.
    """

    def __init__(self, net: nn.Module, facts: Facts, path: Path, predict: Prediction) -> None:
        super().__init__(facts)
        self.net = net
        self.path, self.predict = path, predict

    def denoiser(self, net: Guided, *, clip: bool = False) -> Denoise:
        """denoise(x_t, t) -> x_0 of a net with its label bound; clip keeps pictures in [-1, 1]."""

        def denoise(x: Tensor, t: float) -> Tensor:
            x0 = x0_from(net(x, self.path.net_time(t)), self.predict, x, self.path.alpha(t), self.path.sigma(t))
            return x0.clamp(-1, 1) if clip and not self.facts.is_points else x0

        return denoise

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        label: Tensor,
        rng: Rng,
        *,
        sampler: Literal["ab2", "ddim", "ddpm", "euler", "heun", "midpoint"] = "ab2",
        steps: Annotated[int, Field(ge=1, le=1000)] = 10,
        eta: Annotated[float, Field(ge=0, le=1)] = 0.0,
        guidance: Annotated[float, Field(ge=0, le=20)] = 1.0,
        clip: bool = False,
    ) -> Samples:
        net = Guided(self.net, label, self.facts.classes, guidance)
        options = {"eta": eta} if sampler == "ddim" else {}
        denoise = self.denoiser(net, clip=clip)
        x = SAMPLERS[sampler].walk(denoise, self.path, noise, uniform_times(steps), rng, **options)
        return Samples(x, net.nfe)

    @torch.no_grad()
    def encode(self, x: Tensor, label: Tensor, rng: Rng) -> Tensor:
        """The noise at the other end of x's ODE (DDIM inversion, on whatever path), by the midpoint method."""
        return self._walk(x, label, rng, [NEAR_DATA + (1 - NEAR_DATA) * (1 - t) for t in uniform_times(CODE_STEPS)])

    @torch.no_grad()
    def decode(self, code: Tensor, label: Tensor, rng: Rng) -> Tensor:
        """The data at the end of the noise's ODE, as finely as `encode` went there."""
        return self._walk(code, label, rng, uniform_times(CODE_STEPS))

    def _walk(self, x: Tensor, label: Tensor, rng: Rng, times: list[float]) -> Tensor:
        denoise = self.denoiser(Guided(self.net, label, self.facts.classes))
        return SAMPLERS["midpoint"].walk(denoise, self.path, x, times, rng)
