"""PSNR and SSIM: closed forms, and another implementation."""

import numpy as np
import pytest
import torch

from genflow.maths.similarity import psnr, ssim


def test_psnr_is_of_pictures_in_minus_one_to_one() -> None:
    """An error of the whole range has 0 dB, of a tenth of it 20 dB; equal pictures have the largest value."""
    x = torch.zeros(3, 3, 4, 4)
    y = torch.stack([torch.full((3, 4, 4), value) for value in (2.0, 0.2, 0.0)])
    torch.testing.assert_close(psnr(x, y), torch.tensor([0.0, 20.0, 120.0]), rtol=0, atol=1e-3)


def test_ssim_of_equal_pictures_is_one_and_of_constants_has_a_closed_form() -> None:
    """Without variance only the means count: (2 a b + c1) / (a^2 + b^2 + c1)."""
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    a, b, c1 = 0.5, -0.25, 0.02**2
    found = ssim(torch.full((1, 1, 12, 12), a), torch.full((1, 1, 12, 12), b))
    assert float(found) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-5)


def test_ssim_is_that_of_its_authors_windows() -> None:
    """A direct sum over every window gives the same mean; small pictures have smaller windows."""
    generator = torch.Generator().manual_seed(0)
    for side in (7, 14):
        x, y = (torch.rand(1, 1, side, side, generator=generator) * 2 - 1 for _ in range(2))
        size = min(11, side)
        place = np.arange(size) - (size - 1) / 2
        weight = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
        weight /= weight.sum()
        scores = []
        for top in range(side - size + 1):
            for left in range(side - size + 1):
                p, q = (part[0, 0, top : top + size, left : left + size].double().numpy() for part in (x, y))
                mp, mq = (weight * p).sum(), (weight * q).sum()
                vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
                cov = (weight * (p - mp) * (q - mq)).sum()
                score = (2 * mp * mq + 0.0004) * (2 * cov + 0.0036)
                scores.append(score / ((mp**2 + mq**2 + 0.0004) * (vp + vq + 0.0036)))
        assert float(ssim(x, y)) == pytest.approx(np.mean(scores), abs=1e-6)
