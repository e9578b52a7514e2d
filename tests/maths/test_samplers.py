"""Samplers against the analytic denoiser: equal where they should be, of the order they declare, and counted."""

import inspect
import math
from typing import get_args

import pytest
import torch
from support.oracle import TWO, Mixture

from genflow.families.gaussian import Gaussian
from genflow.maths.paths import (
    DiscretePath,
    Path,
    StraightPath,
    Time,
    along,
    cosine_betas,
    linear_betas,
    spaced_times,
    uniform_times,
)
from genflow.maths.rng import BatchRng, Rng
from genflow.maths.samplers import SAMPLERS, ddim, ddpm, euler, rk45

PATHS: dict[str, Path] = {
    "straight": StraightPath(),
    "cosine": DiscretePath(cosine_betas()),
    "linear": DiscretePath(linear_betas()),
}
SOLVERS = [name for name, sampler in SAMPLERS.items() if not sampler.stochastic and sampler.evaluations]


def noise(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Forbidden(Rng):
    """An Rng that nobody may ask."""

    def normal(self, shape):  # type: ignore[no-untyped-def]
        raise AssertionError("a deterministic sampler drew noise")

    uniform = normal


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Path:
    return PATHS[request.param]


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_without_noise_is_eulers_method(path: Path, steps: int) -> None:
    """DDIM (eta = 0) and Euler in the straight path's variables agree to rounding, on every path."""
    denoise, times = TWO.denoiser(path), uniform_times(steps)
    one = ddim(denoise, path, noise(20), times, Forbidden())
    other = euler(denoise, path, noise(20), times, Forbidden())
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_ddpm_is_the_posterior_of_the_paper(name: str) -> None:
    """Ho et al., 2020, equations 6 and 7, in their own symbols; DDIM with eta = 1 is the same."""
    path = PATHS[name]
    denoise, times = TWO.denoiser(path), uniform_times(40)
    rng = BatchRng(0, "ancestral", 0, total=20)
    x = noise(20)
    for t, s in zip(times[:-1], times[1:], strict=True):
        bar_t, bar_s = path.alpha(t) ** 2, path.alpha(s) ** 2
        beta = 1 - bar_t / bar_s
        mean = math.sqrt(bar_s) * beta / (1 - bar_t) * denoise(x, t)
        mean = mean + math.sqrt(1 - beta) * (1 - bar_s) / (1 - bar_t) * x
        variance = (1 - bar_s) / (1 - bar_t) * beta
        x = mean + math.sqrt(variance) * rng.normal(x.shape) if s > 0 else mean
    for walk, options in ((ddpm, {}), (ddim, {"eta": 1.0})):
        got = walk(denoise, path, noise(20), times, BatchRng(0, "ancestral", 0, total=20), **options)
        torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "end"), [("straight", 0.0), ("cosine", 0.1)])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_the_declared_order_is_the_measured_slope(sampler: str, name: str, end: float) -> None:
    """error ~ steps^-order, against the exact flow of a mixture on the line, where quantiles stay quantiles.

    The cosine path is walked to t = 0.1 only: below, u grows as sqrt(t), and equal times are no equal steps. Those
    whose variable has no value at an end (log-SNR, sigma/alpha) keep away from it.
    """
    path, mixture = PATHS[name], Mixture([0.6, 0.4], [[0.8], [-0.6]], 0.5)
    begin = 0.9 if sampler in ("dpmpp_2m", "edm_heun") else 1.0
    end = max(end, 1 - begin)
    scale = path.alpha(begin) + path.sigma(begin)
    y = noise(50)[:, :1] / scale
    exact = mixture.quantile(mixture.cdf(y, path.flow_time(begin)), path.flow_time(end))
    exact, x = exact * (path.alpha(end) + path.sigma(end)), y * scale
    counts = [40, 80, 160]
    errors = []
    for steps in counts:
        times = [end + (begin - end) * t for t in uniform_times(steps)]
        got = SAMPLERS[sampler].run(mixture.denoiser(path), path, x, times, Forbidden())
        errors.append(float((got - exact).norm()))
    slope = math.log(errors[0] / errors[-1]) / math.log(counts[-1] / counts[0])
    assert slope == pytest.approx(SAMPLERS[sampler].order, abs=0.2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_have_the_mixtures_weights_means_and_width(sampler: str, path: Path) -> None:
    """Weights within 0.04, means within 0.04, width within 10 % (a stochastic walk needs more steps)."""
    rows = 3000 if SAMPLERS[sampler].evaluations else 1000
    steps = 250 if SAMPLERS[sampler].stochastic else 60
    rng = BatchRng(1, "sample", 0, total=rows)
    times = spaced_times(path, steps, SAMPLERS[sampler].spacing)
    x = SAMPLERS[sampler].run(TWO.denoiser(path), path, path.sigma(times[0]) * noise(rows, seed=2), times, rng)
    which = torch.cdist(x, TWO.means).argmin(1)
    for k in range(2):
        own = x[which == k]
        assert len(own) / rows == pytest.approx(float(TWO.weights[k]), abs=0.04)
        torch.testing.assert_close(own.mean(0), TWO.means[k], rtol=0, atol=0.04)
        assert float(own.std(0).mean()) == pytest.approx(TWO.std, rel=0.1)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_evaluations_are_the_calls(sampler: str, steps: int, path: Path) -> None:
    """What a sampler says it costs is what it costs, and it never looks at t = 0, where velocities have no value."""
    asked: list[float] = []
    chosen = SAMPLERS[sampler]

    def denoise(x: torch.Tensor, t: Time) -> torch.Tensor:
        asked.append(float(t.min()) if isinstance(t, torch.Tensor) else t)
        return TWO.denoise_at(x, along(path.alpha, t, x), along(path.sigma, t, x))

    rng = BatchRng(0, "sample", 0, total=4)
    for spacing in ("uniform", "karras", "logsnr"):
        asked.clear()
        x = chosen.run(denoise, path, noise(4), spaced_times(path, steps, spacing), rng)
        if chosen.evaluations and (spacing == chosen.spacing or sampler != "edm_heun"):
            assert len(asked) == chosen.evaluations(steps)
        assert min(asked) > 0
        assert x.isfinite().all()


def test_only_the_stochastic_draw() -> None:
    """A sampler that is declared deterministic never asks the Rng; the others do."""
    path = StraightPath()
    for sampler in SAMPLERS.values():
        if sampler.stochastic:
            with pytest.raises(AssertionError, match="drew noise"):
                sampler.run(TWO.denoiser(path), path, noise(2), uniform_times(3), Forbidden())
        else:
            sampler.run(TWO.denoiser(path), path, noise(2), uniform_times(3), Forbidden())


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_the_adaptive_solver_keeps_its_tolerance(path: Path, tolerance: float) -> None:
    """rk45 against quantiles carried to the end: the error is a few times the tolerance, and more between two modes."""
    mixture, end = Mixture([0.6, 0.4], [[0.8], [-0.6]], 0.25), 0.02
    x = noise(50)[:, :1]
    u = path.flow_time(1.0)
    y = mixture.quantile(mixture.cdf(x / (path.alpha(1.0) + path.sigma(1.0)), u), path.flow_time(end))
    got = rk45(mixture.denoiser(path), path, x, [1.0, 0.5, end], Forbidden(), tolerance=tolerance)
    errors = (got - y * (path.alpha(end) + path.sigma(end))).abs()
    assert errors.median() < 5 * tolerance
    assert errors.max() < 300 * tolerance


def test_the_adaptive_solver_steps_row_by_row(path: Path) -> None:
    """A row's steps do not depend on its company: alone or with others, the same number to rounding."""
    denoise, times, x = TWO.denoiser(path), uniform_times(8), noise(12)
    together = rk45(denoise, path, x, times, Forbidden(), tolerance=1e-4)
    alone = torch.cat([rk45(denoise, path, row[None], times, Forbidden(), tolerance=1e-4) for row in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spacing", ["uniform", "karras", "logsnr"])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_steps_fall_to_the_data(path: Path, spacing: str, steps: int) -> None:
    """steps + 1 times, falling strictly to 0, within what the net was taught."""
    times = spaced_times(path, steps, spacing)
    assert len(times) == steps + 1
    assert times[-1] == 0
    assert times[0] <= 1
    assert all(a > b for a, b in zip(times[:-1], times[1:], strict=True))
    assert spacing == "uniform" or times[-2] >= path.cleanest - 1e-12


def test_karras_steps_have_their_closed_form() -> None:
    """(80^(1/7) + i/17 (0.002^(1/7) - 80^(1/7)))^7 (Karras et al., 2022, equation 5)."""
    path = StraightPath()
    times = spaced_times(path, 18, "karras")
    ratios = [path.sigma(t) / path.alpha(t) for t in times[:-1]]
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert ratios == pytest.approx(expected, rel=1e-9)


def test_families_offer_every_sampler() -> None:
    """The names in the signature, which are the recipe's schema, are those of SAMPLERS."""
    assert get_args(inspect.signature(Gaussian.sample).parameters["sampler"].annotation) == tuple(SAMPLERS)
