"""Training times follow their distributions."""

import numpy as np
import pytest
import torch
from scipy import stats

from genflow.maths import timesteps
from genflow.maths.rng import BatchRng

ROWS = 20_000


def draws(density: timesteps.Density, **options: float) -> torch.Tensor:
    return timesteps.draw(density, ROWS, BatchRng(0, "test", 0), **options)


def test_times_are_inside_the_open_interval() -> None:
    """Times are never 0 or 1, where sigma or alpha is 0."""
    t = draws("logit_normal", std=5.0)
    assert t.min() > 0
    assert t.max() < 1


def test_uniform_is_uniform() -> None:
    """Times pass the Kolmogorov-Smirnov test against U(0, 1)."""
    assert stats.kstest(draws("uniform").numpy(), "uniform").pvalue > 0.01


def test_logit_normal_has_its_mean_and_width() -> None:
    """Without the uniform share logit(t) ~ N(mean, std^2)."""
    logits = torch.logit(draws("logit_normal", mean=0.5, std=0.7, uniform_share=0.0).double())
    assert stats.kstest(((logits - 0.5) / 0.7).numpy(), "norm").pvalue > 0.01


def test_a_share_of_the_logit_normal_is_uniform() -> None:
    """A uniform share of 10 % puts about 0.5 % of times below t = 0.05; the logit-normal alone puts 0.16 % there."""
    share = (draws("logit_normal") < 0.05).float().mean()
    assert float(share) == pytest.approx(0.1 * 0.05 + 0.9 * stats.norm.cdf(-2.944), abs=0.002)


def test_u_shaped_is_the_density_of_reflow() -> None:
    """Times pass the Kolmogorov-Smirnov test against F(t) = 1/2 + sinh(4 (t - 1/2)) / (2 sinh 2)."""
    found = stats.kstest(draws("u_shaped").numpy(), lambda t: 0.5 + np.sinh(4 * (t - 0.5)) / (2 * np.sinh(2)))
    assert found.pvalue > 0.01


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.5])
def test_a_shift_of_the_logit_normal_is_its_mean_plus_the_logarithm(shift: float) -> None:
    """Shifted times are those of the mean + ln s, from the same draws; 0 and 1 stay."""
    plain, moved = (draws("logit_normal", mean=0.3 + more, std=0.7, uniform_share=0.0) for more in (0, np.log(shift)))
    torch.testing.assert_close(timesteps.shifted(plain.double(), shift), moved.double(), rtol=0, atol=5e-7)
    assert timesteps.shifted(torch.tensor([0.0, 1.0]), shift).tolist() == [0, 1]
    t = torch.rand(1000, dtype=torch.float64)
    torch.testing.assert_close(timesteps.shifted(t, shift).logit(), t.logit() + np.log(shift))
    assert shift != 1 or torch.equal(timesteps.shifted(t, shift), t)
