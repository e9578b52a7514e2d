"""Spherical interpolation between two codes, compared with known facts about the circle."""

import math

import pytest
import torch

from genflow.maths.slerp import slerp


@pytest.mark.parametrize("s", [0.0, 0.25, 0.7, 1.0])
def test_angle_and_length_are_linear_in_s(s: float) -> None:
    """From (2, 0) to (0, 4) the angle is s 90 degrees and the length is 2 + 2 s."""
    z = slerp(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]]), torch.tensor([s]))[0]
    angle, length = s * math.pi / 2, 2 + 2 * s
    torch.testing.assert_close(z, length * torch.tensor([math.cos(angle), math.sin(angle)]))


def test_interpolated_codes_keep_their_length() -> None:
    """Halfway between two Gaussian codes a straight line is shorter by sqrt(2); slerp keeps the length."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 4, 5, 5, generator=generator), torch.randn(50, 4, 5, 5, generator=generator)
    half = slerp(a, b, torch.full((50,), 0.5))
    assert half.shape == a.shape
    lengths = half.flatten(1).norm(dim=1) / math.sqrt(100)
    assert float((lengths - 1).abs().max()) < 0.25
    assert float(lengths.mean()) == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(slerp(a, b, torch.zeros(50)), a)
    torch.testing.assert_close(slerp(a, b, torch.ones(50)), b)


def test_codes_without_an_angle_are_interpolated_linearly() -> None:
    """Equal, opposite and zero codes are interpolated linearly."""
    a = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [3.0, 0.0], [0.0, 0.0]])
    z = slerp(a, b, torch.full((4,), 0.25))
    torch.testing.assert_close(z, 0.75 * a + 0.25 * b)
