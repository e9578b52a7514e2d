"""Paths are monotone and invertible, and all kinds of prediction convert to the same data."""

import numpy as np
import pytest
import torch

from genflow.maths.paths import (
    BETAS,
    DiscretePath,
    EdmPath,
    Path,
    StraightPath,
    cosine_betas,
    linear_betas,
    over,
    target,
    uniform_times,
    x0_from,
    x0_sensitivity,
)

PATHS: dict[str, Path] = {
    "straight": StraightPath(),
    "cosine": DiscretePath(cosine_betas()),
    "linear": DiscretePath(linear_betas()),
    "short": DiscretePath(cosine_betas(8)),
    "edm": EdmPath(),
}


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Path:
    return PATHS[request.param]


def test_noise_grows_and_data_fades(path: Path) -> None:
    """alpha decreases strictly from 1; sigma and the flow time increase strictly from 0."""
    t = np.linspace(0, 1, 257)
    alpha, sigma, u = (np.array([f(float(v)) for v in t]) for f in (path.alpha, path.sigma, path.flow_time))
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert u[0] == 0
    assert (np.diff(alpha) < 0).all()
    assert (np.diff(sigma) > 0).all()
    assert (np.diff(u) > 0).all()


def test_the_time_of_a_flow_time_is_the_time(path: Path) -> None:
    """time(flow_time(t)) = t everywhere, including the ends."""
    for t in (0.0, 1e-4, 0.0013, 0.25, 0.5, 0.9137, 0.9999, 1.0):
        assert path.time(path.flow_time(t)) == pytest.approx(t, abs=1e-9)


@pytest.mark.parametrize("name", BETAS)
def test_discrete_paths_keep_the_variance(name: str) -> None:
    """alpha^2 + sigma^2 = 1 at and between the levels, and the levels follow from the betas."""
    betas = BETAS[name](1000)
    path = DiscretePath(betas)
    for t in (0.001, 0.3337, 0.5, 1.0):
        assert path.alpha(t) ** 2 + path.sigma(t) ** 2 == pytest.approx(1, abs=1e-12)
    level = 436
    assert path.alpha((level + 1) / 1000) ** 2 == pytest.approx(np.prod(1 - betas[: level + 1]), rel=1e-12)
    assert path.net_time((level + 1) / 1000) == pytest.approx(level)


def test_the_clock_is_the_same_for_any_number_of_levels() -> None:
    """The net's time input is on the scale of 0..1000 for any number of levels."""
    assert DiscretePath(cosine_betas(100)).net_time(0.5) == pytest.approx(490)
    assert StraightPath().net_time(0.5) == 500


@pytest.mark.parametrize("kind", ["eps", "x", "v", "velocity"])
def test_every_prediction_means_the_same_data(path: Path, kind: str) -> None:
    """x0_from(target(x_0, eps)) = x_0 for all four kinds of prediction."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 3, 4, 4, generator=generator, dtype=torch.float64)
    for t in (0.02, 0.5, 0.9):
        alpha, sigma = path.alpha(t), path.sigma(t)
        answer = target(kind, x0, eps, alpha, sigma)  # type: ignore[arg-type]
        back = x0_from(answer, kind, alpha * x0 + sigma * eps, alpha, sigma)  # type: ignore[arg-type]
        torch.testing.assert_close(back, x0)


@pytest.mark.parametrize("kind", ["eps", "x", "v", "velocity"])
def test_the_sensitivity_of_x0_is_its_derivative(path: Path, kind: str) -> None:
    """x0_sensitivity = |d x_0 / d prediction|, checked with a finite difference."""
    t, x = 0.4, torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = torch.tensor(path.alpha(t)), torch.tensor(path.sigma(t))
    one, other = (x0_from(x + step, kind, x, alpha, sigma) for step in (0.0, 1.0))  # type: ignore[arg-type]
    torch.testing.assert_close((other - one).abs(), x0_sensitivity(kind, alpha, sigma).double().expand_as(x))  # type: ignore[arg-type]


def test_the_net_time_of_edm_is_the_log_of_its_sigma() -> None:
    """net_time is affine in c_noise = ln(sigma)/4, from 0 at 0.002 to 1000 at 80."""
    path = EdmPath()
    for sigma in (0.002, 0.5, 80.0):
        share = np.log(sigma / 0.002) / np.log(80 / 0.002)
        t = path.time(sigma / (1 + sigma))
        assert path.net_time(t) == pytest.approx(1000 * share, abs=1e-3)
        assert path.sigma(t) / path.alpha(t) == pytest.approx(sigma)


def test_uniform_times_fall_from_one_to_zero() -> None:
    """There are steps + 1 times, and both ends are exact."""
    assert uniform_times(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert over(torch.arange(3), torch.zeros(3, 1, 2, 2)).shape == (3, 1, 1, 1)
