"""The similarity of pictures and their reconstructions: PSNR and SSIM.

    PSNR = 10 log10(range^2 / mean squared error)
    SSIM = mean over windows of (2 mx my + c1) (2 cov + c2) / ((mx^2 + my^2 + c1) (vx + vy + c2))

References:
    Image quality assessment: from error visibility to structural similarity (Wang et al., 2004), for SSIM with its
    windows (Gaussian, 11 x 11, sigma 1.5) and constants (c1 = (0.01 range)^2, c2 = (0.03 range)^2)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from genflow.maths.wide import wide, wide_type

RANGE = 2.0  # of the numbers of pictures in [-1, 1]
WINDOW, SIGMA = 11, 1.5


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """The peak signal-to-noise ratio in dB of each row of x and y, (B, C, H, W) in [-1, 1]; at most 120."""
    error = (x.float() - y.float()).square().flatten(1).mean(1) / RANGE**2
    return -10 * error.clamp(min=1e-12).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """The structural similarity of each row of x and y, (B, C, H, W) in [-1, 1], a mean over channels and windows.

    The window is smaller for pictures of fewer than 11 pixels a side.
    """
    B, C, H, W = x.shape
    size = min(WINDOW, H, W)
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    window = (-place.square() / (2 * SIGMA**2)).exp()
    window = (window / window.sum()).to(wide_type(x.device)).to(x.device)

    def smooth(values: Tensor) -> Tensor:
        rows = F.conv2d(values.reshape(B * C, 1, H, W), window[None, None, :, None])
        return F.conv2d(rows, window[None, None, None])

    x, y = wide(x), wide(y)
    mx, my = smooth(x), smooth(y)
    vx, vy, cov = smooth(x * x) - mx * mx, smooth(y * y) - my * my, smooth(x * y) - mx * my
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return score.reshape(B, -1).mean(1).float()
