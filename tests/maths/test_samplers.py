"""Samplers against the analytic denoiser: their results, orders and numbers of evaluations."""

import inspect
import math
from typing import get_args

import pytest
import torch
from support.oracle import TWO, Mixture

from genflow.errors import UsageError
from genflow.families.gaussian import Gaussian
from genflow.maths import samplers
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
    """An Rng that fails when it is used."""

    def normal(self, shape):  # type: ignore[no-untyped-def]
        raise AssertionError("a deterministic sampler drew noise")

    uniform = normal


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Path:
    return PATHS[request.param]


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_without_noise_is_eulers_method(path: Path, steps: int) -> None:
    """On every path DDIM with eta = 0 equals Euler in the straight path's variables, to rounding."""
    denoise, times = TWO.denoiser(path), uniform_times(steps)
    one = ddim(denoise, path, noise(20), times, Forbidden())
    other = euler(denoise, path, noise(20), times, Forbidden())
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_ddpm_is_the_posterior_of_the_paper(name: str) -> None:
    """`ddpm` and DDIM with eta = 1 equal equations 6 and 7 of Ho et al., 2020."""
    path = PATHS[name]
    denoise, times = TWO.denoiser(path), uniform_times(40)
    rng = BatchRng(0, "ancestral", 0)
    x = noise(20)
    for t, s in zip(times[:-1], times[1:], strict=True):
        bar_t, bar_s = path.alpha(t) ** 2, path.alpha(s) ** 2
        beta = 1 - bar_t / bar_s
        mean = math.sqrt(bar_s) * beta / (1 - bar_t) * denoise(x, t)
        mean = mean + math.sqrt(1 - beta) * (1 - bar_s) / (1 - bar_t) * x
        variance = (1 - bar_s) / (1 - bar_t) * beta
        x = mean + math.sqrt(variance) * rng.normal(x.shape) if s > 0 else mean
    for sampler, options in ((ddpm, {}), (ddim, {"eta": 1.0})):
        got = sampler(denoise, path, noise(20), times, BatchRng(0, "ancestral", 0), **options)
        torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "end"), [("straight", 0.0), ("cosine", 0.1)])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_the_declared_order_is_the_measured_slope(sampler: str, name: str, end: float) -> None:
    """error ~ steps^-order, compared with the exact flow of a one-dimensional mixture, which preserves quantiles.

    The cosine path ends at t = 0.1: below it u grows as sqrt(t), so equal steps in t are not equal in u. Samplers
    whose variable (log-SNR, sigma/alpha) is infinite at t = 1 start at t = 0.9.
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
    """Weights and means are within 0.04, the width within 10 %; stochastic samplers need more steps."""
    rows = 3000 if SAMPLERS[sampler].evaluations else 1000
    steps = 250 if SAMPLERS[sampler].stochastic else 60
    rng = BatchRng(1, "sample", 0)
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

    rng = BatchRng(0, "sample", 0)
    for spacing in ("uniform", "karras", "logsnr"):
        asked.clear()
        x = chosen.run(denoise, path, noise(4), spaced_times(path, steps, spacing), rng)
        if chosen.evaluations and (spacing == chosen.spacing or sampler != "edm_heun"):
            assert len(asked) == chosen.evaluations(steps)
        assert min(asked) > 0
        assert x.isfinite().all()


def test_only_stochastic_samplers_draw_noise() -> None:
    """A sampler that is declared deterministic never uses the Rng; the others do."""
    path = StraightPath()
    for sampler in SAMPLERS.values():
        if sampler.stochastic:
            with pytest.raises(AssertionError, match="drew noise"):
                sampler.run(TWO.denoiser(path), path, noise(2), uniform_times(3), Forbidden())
        else:
            sampler.run(TWO.denoiser(path), path, noise(2), uniform_times(3), Forbidden())


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_the_adaptive_solver_keeps_its_tolerance(path: Path, tolerance: float) -> None:
    """The error of rk45 is a few times the tolerance, compared with exact quantiles; between two modes it is larger."""
    mixture, end = Mixture([0.6, 0.4], [[0.8], [-0.6]], 0.25), 0.02
    x = noise(50)[:, :1]
    u = path.flow_time(1.0)
    y = mixture.quantile(mixture.cdf(x / (path.alpha(1.0) + path.sigma(1.0)), u), path.flow_time(end))
    got = rk45(mixture.denoiser(path), path, x, [1.0, 0.5, end], Forbidden(), tolerance=tolerance)
    errors = (got - y * (path.alpha(end) + path.sigma(end))).abs()
    assert errors.median() < 5 * tolerance
    assert errors.max() < 300 * tolerance


def test_the_adaptive_solver_steps_row_by_row(path: Path) -> None:
    """A row's steps do not depend on the batch: alone or with others it gives the same result, to rounding."""
    denoise, times, x = TWO.denoiser(path), uniform_times(8), noise(12)
    together = rk45(denoise, path, x, times, Forbidden(), tolerance=1e-4)
    alone = torch.cat([rk45(denoise, path, row[None], times, Forbidden(), tolerance=1e-4) for row in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spacing", ["uniform", "karras", "logsnr"])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_times_decrease_to_the_data(path: Path, spacing: str, steps: int) -> None:
    """There are steps + 1 times; they decrease strictly to 0, within the range on which the net is trained."""
    times = spaced_times(path, steps, spacing)
    assert len(times) == steps + 1
    assert times[-1] == 0
    assert times[0] <= 1
    assert all(a > b for a, b in zip(times[:-1], times[1:], strict=True))
    assert spacing == "uniform" or times[-2] >= path.cleanest - 1e-12


def test_karras_steps_have_their_closed_form() -> None:
    """sigma/alpha is (80^(1/7) + i/17 (0.002^(1/7) - 80^(1/7)))^7 (Karras et al., 2022, equation 5)."""
    path = StraightPath()
    times = spaced_times(path, 18, "karras")
    ratios = [path.sigma(t) / path.alpha(t) for t in times[:-1]]
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert ratios == pytest.approx(expected, rel=1e-9)


def test_families_offer_every_sampler() -> None:
    """The names in the signature of `sample`, which is the recipe's schema, are those of SAMPLERS."""
    assert get_args(inspect.signature(Gaussian.sample).parameters["sampler"].annotation) == tuple(SAMPLERS)


def test_an_unreachable_tolerance_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of adaptive steps is bounded."""
    monkeypatch.setattr(samplers, "MAX_ADAPTIVE_STEPS", 20)
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(UsageError, match="tolerance: rk45 does not reach 1e-300 within 20 steps"):
        rk45(lambda x, t: 0.5 * x, StraightPath(), x, [1.0, 0.5, 0.0], Forbidden(), tolerance=1e-300)
