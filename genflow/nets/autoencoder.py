"""Convolutional encoder from a picture to spatial latents, and decoder from latents to a picture.

    encoder  (C, H, W) -> squares of 2 x 2 pixels into channels -> levels, halved from one to the next -> (c, H/f, W/f)
    decoder  (c, H/f, W/f) -> levels, doubled from one to the next -> squares of 2 x 2 pixels -> (C, H, W)

Both are fully convolutional: their weights fit pictures of any side that the factor f divides. They ignore labels, so
latents are a function of the picture alone.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)   https://arxiv.org/abs/2112.10752
"""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.errors import UsageError
from genflow.nets.layers import zero_init
from genflow.specs import NetSpec
from genflow.text import Label

FOLD = 2  # the side of the squares of pixels that become channels


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
    """Map pictures (B, C, H, W) to (B, outputs, H/f, W/f); see `build`."""

    def __init__(self, inputs: int, outputs: int, widths: list[int], blocks: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(inputs * FOLD**2, widths[0], 3, padding=1)]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if level:
                layers.append(nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
            layers += [Block(width) for _ in range(count)]
        self.layers = nn.Sequential(*layers)
        self.norm = Norm(widths[-1])
        self.leave = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        return self.leave(F.silu(self.norm(self.layers(F.pixel_unshuffle(x, FOLD)))))


class Decoder(nn.Module):
    """Map latents (B, inputs, h, w) to pictures (B, outputs, h f, w f); see `build`."""

    def __init__(self, inputs: int, outputs: int, widths: list[int], blocks: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(inputs, widths[-1], 3, padding=1)]
        for level, (width, count) in reversed(list(enumerate(zip(widths, blocks, strict=True)))):
            layers += [Block(width) for _ in range(count)]
            if level:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, widths[level - 1], 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.norm = Norm(widths[0])
        self.leave = nn.Conv2d(widths[0], outputs * FOLD**2, 3, padding=1)

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        return F.pixel_shuffle(self.leave(F.silu(self.norm(self.layers(x)))), FOLD)


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
    kind = Encoder if is_encoder else Decoder
    return kind(ports.inputs[0], ports.outputs[0], [width * m for m in multipliers], list(blocks))


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
