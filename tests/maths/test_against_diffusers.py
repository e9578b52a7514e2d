"""Schedules and samplers agree numerically with diffusers, for the same network and the same noise.

Uniform times are "trailing" spacing in diffusers; level k is at t = (k + 1)/T.
"""

import math

import numpy as np
import pytest
import torch
from support.small import family, shaken
from torch import Tensor, nn

from genflow.maths import timesteps
from genflow.maths.guidance import Guided
from genflow.maths.paths import BETAS, DiscretePath, StraightPath, x0_from
from genflow.maths.rng import Rng
from genflow.maths.samplers import SAMPLERS, heun
from genflow.specs import DataSpec

diffusers = pytest.importorskip("diffusers")

SCHEDULE = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTION = {"eps": "epsilon", "x": "sample", "v": "v_prediction"}
FACTS = DataSpec((1, 4, 4), levels=256)
LABEL = torch.zeros(3, dtype=torch.long)


class OneGenerator(Rng):
    """An Rng that draws from one generator, as diffusers does."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, shape) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.randn(tuple(shape), generator=self.generator)

    uniform = normal


def start() -> Tensor:
    return torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(9))


def close(ours: Tensor, theirs: Tensor) -> None:
    """Compare with a tolerance for single precision, in which diffusers also stores its schedule."""
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=5e-4)


def scheduler(kind: str, schedule: str, predict: str, **options: object):  # type: ignore[no-untyped-def]
    return getattr(diffusers, kind)(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule=SCHEDULE[schedule],
        prediction_type=PREDICTION[predict], clip_sample=False, timestep_spacing="trailing", **options,
    )  # fmt: skip


def denoiser(schedule: str, predict: str) -> nn.Module:
    return shaken(family("ddpm", FACTS, "mlp", family={"schedule": schedule, "predict": predict}))


@pytest.mark.parametrize("schedule", SCHEDULE)
def test_noise_schedules_agree(schedule: str) -> None:
    """betas and alphas_cumprod are equal at every level."""
    theirs = scheduler("DDPMScheduler", schedule, "eps")
    ours = BETAS[schedule](1000)
    np.testing.assert_allclose(ours, theirs.betas.numpy(), rtol=2e-5)
    bars = DiscretePath(ours).alpha_bar
    np.testing.assert_allclose(bars[:990], theirs.alphas_cumprod.numpy()[:990], rtol=3e-3)
    np.testing.assert_allclose(bars, theirs.alphas_cumprod.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "predict", "steps"),
    [("linear", "eps", 1000), ("cosine", "v", 1000), ("linear", "x", 100), ("linear", "v", 20), ("cosine", "x", 10)],
)
def test_ancestral_sampling_agrees(schedule: str, predict: str, steps: int) -> None:
    """`ddpm` equals DDPMScheduler with fixed_small variance, for 1000 levels and fewer."""
    model = denoiser(schedule, predict)
    ours = model.sample(start(), LABEL, OneGenerator(1), sampler="ddpm", steps=steps, clip=False).x
    theirs = scheduler("DDPMScheduler", schedule, predict, variance_type="fixed_small")
    theirs.set_timesteps(steps)
    x, generator = start(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(model.net(x, t.float().expand(3), LABEL), t, x, generator=generator).prev_sample
    close(ours, x)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("predict", PREDICTION)
@pytest.mark.parametrize("schedule", SCHEDULE)
def test_ddim_agrees(schedule: str, predict: str, eta: float) -> None:
    """`ddim` equals DDIMScheduler with trailing spacing and the same noise."""
    model = denoiser(schedule, predict)
    ours = model.sample(start(), LABEL, OneGenerator(1), sampler="ddim", steps=20, eta=eta, clip=False).x
    theirs = scheduler("DDIMScheduler", schedule, predict)
    theirs.set_timesteps(20)
    x, rng = start(), OneGenerator(1)
    with torch.no_grad():
        for t in theirs.timesteps:
            answer = model.net(x, t.float().expand(3), LABEL)
            z = rng.normal(x.shape) if eta and t > theirs.timesteps[-1] else torch.zeros_like(x)
            x = theirs.step(answer, t, x, eta=eta, variance_noise=z).prev_sample
    close(ours, x)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_eulers_method_on_the_straight_path_agrees(steps: int) -> None:
    """`euler` equals FlowMatchEulerDiscreteScheduler: same direction of time, same network time 1000 t."""
    model = shaken(family("flow_matching", FACTS, "mlp"))
    ours = model.sample(start(), LABEL, OneGenerator(1), sampler="euler", steps=steps).x
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    x = start()
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(model.net(x, t.expand(3), LABEL), t, x).prev_sample
    close(ours, x)


def test_heuns_method_on_the_straight_path_agrees() -> None:
    """`heun` equals FlowMatchHeunDiscreteScheduler on its time grid, whose last time before 0 is 1/1000."""
    model = shaken(family("flow_matching", FACTS, "mlp"))
    theirs = diffusers.FlowMatchHeunDiscreteScheduler()
    theirs.set_timesteps(10)
    x = start()
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(model.net(x, t.expand(3), LABEL), t, x).prev_sample

        def denoise(y: Tensor, t: float) -> Tensor:
            return x0_from(model.net(y, torch.full((3,), 1000 * t), LABEL), "velocity", y, 1 - t, t)

        times = [*dict.fromkeys(theirs.sigmas.tolist())]
        ours = heun(denoise, StraightPath(), start(), times, OneGenerator(1))
    close(ours, x)


@pytest.mark.parametrize(
    ("schedule", "predict", "steps"),
    [("linear", "eps", 20), ("cosine", "v", 20), ("linear", "x", 8), ("cosine", "v", 1)],
)
def test_dpm_solver_agrees(schedule: str, predict: str, steps: int) -> None:
    """`dpmpp_2m` equals DPMSolverMultistepScheduler (dpmsolver++ of order 2, final step to sigma = 0)."""
    model = denoiser(schedule, predict)
    ours = model.sample(start(), LABEL, OneGenerator(1), sampler="dpmpp_2m", steps=steps, clip=False).x
    options = {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
    theirs = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule=SCHEDULE[schedule],
        prediction_type=PREDICTION[predict], timestep_spacing="trailing", **options,
    )  # fmt: skip
    theirs.set_timesteps(steps)
    x = start()
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(model.net(x, t.float().expand(3), LABEL), t, x).prev_sample
    close(ours, x)


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("steps", [5, 25])
def test_edms_heun_agrees(steps: int, karras: bool) -> None:
    """`edm_heun` equals HeunDiscreteScheduler in sigma/alpha, with uniform levels and with Karras's spacing."""
    model = denoiser("linear", "eps")
    theirs = diffusers.HeunDiscreteScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
        timestep_spacing="trailing", use_karras_sigmas=karras,
    )  # fmt: skip
    theirs.set_timesteps(steps)
    ratios = [*dict.fromkeys(theirs.sigmas.double().tolist())]
    path = model.path
    times = [path.time(r / (1 + r)) for r in ratios]
    if not karras:
        assert times == pytest.approx([1 - i / steps for i in range(steps + 1)], abs=2e-4)
    x = start() * ratios[0]
    with torch.no_grad():
        for t in theirs.timesteps:
            r = float(theirs.sigmas[theirs.index_for_timestep(t) if theirs.step_index is None else theirs.step_index])
            level = torch.full((3,), path.net_time(path.time(r / (1 + r))))
            answer = model.net(theirs.scale_model_input(x, t), level, LABEL)
            x = theirs.step(answer, t, x).prev_sample
        begin = start() * ratios[0] * path.alpha(times[0])
        net = Guided(model.net, LABEL, 0)
        ours = SAMPLERS["edm_heun"].run(model.denoiser(net), path, begin, times, OneGenerator(1))
    close(ours, x)
    assert net.nfe == 2 * steps - 1 == len(theirs.timesteps)


def test_edm_agrees() -> None:
    """`schedule: edm` equals EDMEulerScheduler: the same preconditioning, Karras spacing and noise levels."""
    facts = DataSpec((1, 4, 4), levels=256, sigma_data=0.6)
    model = shaken(family("ddpm", facts, "mlp", family={"schedule": "edm"}))
    theirs = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.6, rho=7.0)
    theirs.set_timesteps(18)
    low, high = math.log(0.002), math.log(80.0)
    x = start() * 80
    with torch.no_grad():
        for t in theirs.timesteps:  # c_noise = ln(sigma)/4
            level = 1000 * ((4 * t.float() - low) / (high - low)).clamp(0, 1)
            x = theirs.step(-model.net(theirs.scale_model_input(x, t), level.expand(3), LABEL), t, x).prev_sample
    ours = model.sample(start(), LABEL, OneGenerator(1), sampler="ddim", spacing="karras", steps=18, clip=False).x
    close(ours, x)


def test_a_shift_of_the_times_is_that_of_the_scheduler() -> None:
    """`shifted` gives the sigmas of FlowMatchEulerDiscreteScheduler with the same shift and the same grid."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    times = np.linspace(1, 0, 11)
    scheduler.set_timesteps(sigmas=times[:-1])
    ours = timesteps.shifted(torch.tensor(times), 3.0)
    torch.testing.assert_close(ours, scheduler.sigmas.double(), rtol=0, atol=1e-6)
