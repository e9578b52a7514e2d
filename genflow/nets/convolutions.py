"""Convolution layers with the parameters of `nn.Conv2d`, computed by the operation that is fastest on the device.

A CPU spends more time on the layout of pictures than on a convolution of one pixel. GPUs use torch's own convolutions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available()  # here, because a compiler cannot trace the call
PIXELS = 14 * 14  # from which a product per picture costs a CPU less in training than a convolution; measured


class Pointwise(nn.Conv2d):
    """A convolution of one pixel: x (B, C, H, W) -> (B, out, H, W).

    On a CPU it is a matrix product per picture, which takes three fifths of the time for 28 x 28 pixels in bfloat16.
    Without gradients it is one for pictures of any size: torch's convolution of one pixel rounds a picture differently
    in batches of fewer than 16, so a sample would need as many rows (see `nets.rows`).
    """

    def forward(self, x: Tensor) -> Tensor:
        is_small = torch.is_grad_enabled() and x.shape[2] * x.shape[3] < PIXELS
        if x.device.type != "cpu" or is_small or self.bias is None:
            return super().forward(x)
        weight = self.weight.flatten(1).expand(x.shape[0], -1, -1)
        return torch.baddbmm(self.bias[:, None], weight, x.flatten(2)).unflatten(2, x.shape[2:])


class Enlarge(nn.Conv2d):
    """Enlarge pictures to the nearest pixel, then a 3 x 3 convolution: x (B, C, H, W) -> (B, out, *size).

    Both together double the size as a transposed convolution of 4 x 4 with stride 2 does, which has 4/9 of the
    multiplications. With the kernel (a, b, c) along one dimension, an even pixel is a x[i-1] + (b + c) x[i] and an odd
    one (a + b) x[i] + c x[i+1]; so the transposed kernel is (c, b + c, a + b, a).
    """

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """The convolution of the enlarged x.

        Args:
            x: pictures (B, C, H, W).
            size: height and width of the result; None: doubled.
        """
        doubled = (2 * x.shape[2], 2 * x.shape[3])
        size = doubled if size is None else tuple(size)
        if x.device.type != "cpu" or size != doubled:
            return super().forward(F.interpolate(x, size=size, mode="nearest"))
        return F.conv_transpose2d(x, self.enlarging(), self.bias, stride=2, padding=1)

    def enlarging(self) -> Tensor:
        """The kernel (C, out, 4, 4) of the transposed convolution."""
        kernel = self.weight
        for dim in (2, 3):
            a, b, c = kernel.unbind(dim)
            kernel = torch.stack([c, b + c, a + b, a], dim)
        return kernel.transpose(0, 1)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
) -> Tensor:  # fmt: skip
    """`F.conv2d` that computes one picture by the kernel that computes several, if no gradient is needed.

    On a CPU torch multiplies matrices for one picture of up to 20,480 numbers (`use_mkldnn` in ATen's Convolution.cpp),
    which rounds differently. Kernels of one pixel differ all the same: see `Pointwise`.
    """
    is_alone = not torch.compiler.is_compiling() and x.shape[0] == 1 and not torch.is_grad_enabled()
    is_float = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if is_alone and is_float and ONEDNN:
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
