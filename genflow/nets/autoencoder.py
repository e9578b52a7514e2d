"""Convolutional encoder from a picture to spatial latents, and decoder from latents to a picture.

    encoder  (C, H, W) -> squares of 2 x 2 pixels into channels -> levels, halved from one to the next -> (c, H/f, W/f)
    decoder  (c, H/f, W/f) -> levels, doubled from one to the next -> squares of 2 x 2 pixels -> (C, H, W)

Both are fully convolutional: their weights fit pictures of any side that the factor f divides. They ignore labels, so
latents are a function of the picture alone.

A fixed linear code surrounds the layers: the encoder adds coefficients of a discrete cosine transform of each block of
f x f pixels to the latents, and the decoder adds their inverse to the picture. The last layers begin at zero, so
training begins with this code, and the layers learn what it lacks. Deep Compression Autoencoders have a shortcut of
the same purpose, by means and copies of channels.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)   https://arxiv.org/abs/2112.10752
    Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models (Chen et al., 2024), section 3.2
    https://arxiv.org/abs/2410.10733
"""

from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from genflow.errors import UsageError
from genflow.maths.cosine_transform import cosine_transform
from genflow.nets.convolutions import convolve
from genflow.nets.layers import zero_init
from genflow.specs import NetSpec
from genflow.text import Label

FOLD = 2  # the side of the squares of pixels that become channels

# A guess of the variances of coefficients, for their choice and scale: those of a pixel's sum of colours, of red - blue
# and of green - magenta, each of unit length; and the share of a frequency (u, v) other than 0, times u^2 + v^2.
COLOURS = ((1, 1, 1), (1, 0, -1), (-1, 2, -1))
VARIANCES = (1.2, 0.144, 0.072)
DETAIL = 0.06


class Norm(nn.Module):
    """RMS norm of each position of x (B, C, H, W) over its channels, so that no position depends on another."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        square = (x * x).sum(1, keepdim=True, dtype=torch.float32) / x.shape[1]  # measured: faster than a float32 copy
        return x * (square + 1e-6).rsqrt().to(x.dtype) * self.weight.to(x.dtype)


class Block(nn.Module):
    """A residual block: norm, SiLU, conv, norm, SiLU, conv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(channels), Norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zero_init(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Encoder(nn.Module):
    """Map pictures (B, C, H, W) to (B, outputs, H/f, W/f), with the code in the first of the parts; see `build`."""

    code: Tensor

    def __init__(self, inputs: int, outputs: int, widths: list[int], blocks: list[int], parts: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(inputs * FOLD**2, widths[0], 3, padding=1)]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if level:
                layers.append(nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
            layers += [Block(width) for _ in range(count)]
        self.layers = nn.Sequential(*layers)
        self.norm = Norm(widths[-1])
        self.leave = zero_init(nn.Conv2d(widths[-1], outputs, 3, padding=1))
        basis, deviations = linear_code(inputs, FOLD * 2 ** (len(widths) - 1), outputs // parts)
        self.register_buffer("code", torch.tensor(basis / deviations))

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        y = self.leave(F.silu(self.norm(self.layers(F.pixel_unshuffle(x, FOLD)))))
        code = convolve(x, self.code, stride=self.code.shape[-2:])
        return y + F.pad(code, (0, 0, 0, 0, 0, y.shape[1] - code.shape[1]))


class Decoder(nn.Module):
    """Map latents (B, inputs, h, w) to pictures (B, outputs, h f, w f); see `build`."""

    code: Tensor

    def __init__(self, inputs: int, outputs: int, widths: list[int], blocks: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(inputs, widths[-1], 3, padding=1)]
        for level, (width, count) in reversed(list(enumerate(zip(widths, blocks, strict=True)))):
            layers += [Block(width) for _ in range(count)]
            if level:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, widths[level - 1], 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.norm = Norm(widths[0])
        self.leave = zero_init(nn.Conv2d(widths[0], outputs * FOLD**2, 3, padding=1))
        basis, deviations = linear_code(outputs, FOLD * 2 ** (len(widths) - 1), inputs)
        self.register_buffer("code", torch.tensor(basis * deviations))

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        y = F.pixel_shuffle(self.leave(F.silu(self.norm(self.layers(x)))), FOLD)
        return y + F.conv_transpose2d(x[:, : len(self.code)], self.code, stride=self.code.shape[-1])


def linear_code(colours: int, factor: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The coefficients with the largest expected variance of the cosine transform of blocks, in this order.

    Args:
        colours: C, the channels of a picture; 3 are transformed to a sum and two differences.
        factor: f, the side of the blocks.
        count: the most coefficients.

    Returns:
        orthonormal weights (n, C, f, f) with n = min(count, C f f), and the expected deviations (n, 1, 1, 1).
    """
    cosines = cosine_transform(factor)
    mixed, scale = np.eye(colours), np.full(colours, 0.4)
    if colours == 3:
        mixed, scale = np.array(COLOURS) / np.linalg.norm(COLOURS, axis=1, keepdims=True), np.array(VARIANCES)
    frequency = np.arange(factor)
    square = np.maximum(frequency[:, None] ** 2 + frequency**2, DETAIL)
    variances = (scale[:, None, None] * factor**2 * DETAIL / square).ravel()
    order = np.argsort(-variances, kind="stable")[:count]
    weights = np.einsum("ac,uh,vw->auvchw", mixed, cosines, cosines).reshape(-1, colours, factor, factor)
    return weights[order].astype(np.float32), np.sqrt(variances[order]).astype(np.float32)[:, None, None, None]


def build(
    ports: NetSpec,
    classes: int,
    *,
    width: Annotated[int, Field(ge=1, le=2048)] = 32,
    multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = (),
    encoder_blocks: tuple[Annotated[int, Field(ge=0, le=64)], ...] = (),
    decoder_blocks: tuple[Annotated[int, Field(ge=0, le=64)], ...] = (),
) -> nn.Module:
    """Build an encoder if the output is smaller than the input, and a decoder in the opposite case.

    Args:
        ports: input and output shapes; the ratio of their sides is a power of two, the factor f.
        classes: ignored.
        width: channels at half the picture's resolution.
        multipliers: channels of each level as multiples of width, one level for each power of two in f; empty: 1, 2, 4,
            4, ....
        encoder_blocks: residual blocks of the encoder's levels, finest first; empty: 0, 1, 2, 2, ....
        decoder_blocks: residual blocks of the decoder's levels, finest first; empty: 1, 2, 3, 3, ....

    Raises:
        UsageError: the shapes are not those of pictures and their latents, or a list does not have f's length.
    """
    levels, is_encoder = _levels(ports)
    multipliers = multipliers or tuple(min(2**level, 4) for level in range(levels))
    default = tuple(min(level, 2) + (not is_encoder) for level in range(levels))
    blocks = (encoder_blocks if is_encoder else decoder_blocks) or default
    for name, given in (("multipliers", multipliers), (f"{'en' if is_encoder else 'de'}coder_blocks", blocks)):
        if len(given) != levels:
            raise UsageError(
                f"net.{name} has {len(given)} numbers, and a factor of {2**levels} has {levels} levels",
                f"give {levels} numbers, or none",
            )
    inputs, outputs, widths = ports.inputs[0], ports.outputs[0], [width * m for m in multipliers]
    if is_encoder:
        return Encoder(inputs, outputs, widths, list(blocks), ports.parts)
    return Decoder(inputs, outputs, widths, list(blocks))


def _levels(ports: NetSpec) -> tuple[int, bool]:
    """The number of levels, log2 of the factor, and whether the input is the picture.

    Raises:
        UsageError: the shapes are not those of pictures and their latents.
    """
    if len(ports.inputs) == len(ports.outputs) == 3 and not ports.time and min(ports.inputs + ports.outputs) > 0:
        is_encoder = ports.inputs[1] > ports.outputs[1]
        (_, H, W), (_, h, w) = (ports.inputs, ports.outputs) if is_encoder else (ports.outputs, ports.inputs)
        levels = (H // h).bit_length() - 1
        if levels and (h * 2**levels, w * 2**levels) == (H, W):
            return levels, is_encoder
    raise UsageError(
        f"net autoencoder turns a picture into latents or back; "
        f"here the input is {ports.inputs} and the output {ports.outputs}",
        "use net.kind=unet, dit or mlp",
    )


def of_size(size: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """l has the 128 channels of the autoencoders of Rombach et al. (2022); the others are multiples."""
    return {"width": {"s": 64, "m": 96, "l": 128, "xl": 192}[size]}
