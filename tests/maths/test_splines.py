"""Rational-quadratic splines are monotonic, smooth and invertible, and report their derivative."""

import pytest
import torch

from genflow.maths import splines


def case(bins: int, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers inside and outside the range of the spline, each with separate parameters."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-7, 7, 500, dtype=torch.float64)
    return x, scale * torch.randn(500, splines.parameter_count(bins), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("bins", [0, 1, 2, 16])
def test_the_derivative_is_autograds_and_the_inverse_undoes_it(bins: int) -> None:
    """dz/dx equals autograd's; inverse(transform(x)) = x; the logs of the two slopes cancel."""
    x, params = case(bins)
    x.requires_grad_()
    z, log_slope = splines.transform(x, params, bins)
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(slope.log(), log_slope, rtol=0, atol=1e-8)
    back, log_back = splines.transform(z, params, bins, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(log_back, -log_slope, rtol=0, atol=1e-6)


def test_zeros_are_the_identity() -> None:
    """Parameters of 0 leave x unchanged."""
    x, params = case(8, 0.0)
    z, log_slope = splines.transform(x, params, 8)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-12)


def test_the_slope_has_no_jumps() -> None:
    """The slope of a spline is continuous at every knot, and 1 outside the range."""
    _, params = case(6)
    x = torch.linspace(-5, 5, 200_001, dtype=torch.float64)
    own = params[7].clone()
    own[:2] = 0  # no affine map
    z, log_slope = splines.transform(x, own.expand(len(x), -1), 6)
    assert float(log_slope.diff().abs().max()) < 0.05
    assert bool((z.diff() > 0).all())
    assert float(log_slope[x.abs() > 4].abs().max()) == 0
