"""The power-function average has the documented weight profile."""

import pytest
import torch
from torch import nn

from genflow.training.ema import Ema, gamma_of


class Marks(nn.Module):
    """A parameter that is one-hot in the step, so that its average is the profile itself."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.mark = nn.Parameter(torch.zeros(steps, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def at(self, step: int) -> None:
        self.mark.data.zero_()
        self.mark.data[step - 1] = 1


def profile(steps: int, sigma_rel: float) -> tuple[torch.Tensor, Ema]:
    marks = Marks(steps)
    ema = Ema(marks, sigma_rel)
    for step in range(1, steps + 1):
        marks.at(step)
        ema.update(step)
    return ema.state()["mark"], ema


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.25])
def test_gamma_gives_the_requested_width(sigma_rel: float) -> None:
    """EDM2, equation 126, agrees with the width measured on the profile's weights."""
    gamma = gamma_of(sigma_rel)
    assert (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5) == pytest.approx(sigma_rel)
    weights, _ = profile(2000, sigma_rel)
    position = torch.arange(1, 2001, dtype=torch.float64) / 2000
    mean = (weights * position).sum()
    assert float((weights * (position - mean) ** 2).sum() ** 0.5) == pytest.approx(sigma_rel, rel=0.01)


def test_the_profile_is_the_power_function() -> None:
    """Weights sum to 1 and grow as (t / t_n)^gamma."""
    weights, ema = profile(2000, 0.10)
    position = torch.arange(1, 2001, dtype=torch.float64) / 2000
    assert float(weights.sum()) == pytest.approx(1)
    expected = position**ema.gamma
    torch.testing.assert_close(weights[200:], (expected / expected.sum())[200:], rtol=0.08, atol=1e-6)


def test_the_first_update_copies_the_weights() -> None:
    """The initial weights have no influence."""
    weights, _ = profile(1, 0.10)
    assert weights.tolist() == [1.0]


def test_a_width_that_no_average_has_is_rejected() -> None:
    """A plain mean has the largest possible width, 0.2887."""
    with pytest.raises(ValueError, match=r"below 0\.2887"):
        gamma_of(0.30)


def test_only_trained_parameters_are_averaged_and_the_state_restores_them() -> None:
    """Frozen parameters are excluded; load restores what state returned."""
    weights, ema = profile(5, 0.10)
    assert list(ema.state()) == ["mark"]
    other = Ema(Marks(5), 0.10)
    other.load({"mark": weights})
    assert torch.equal(other.state()["mark"], weights)
