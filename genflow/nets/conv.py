"""Convolutional encoder (picture to vector) and decoder (vector to picture).

    encoder  (C, H, W) -> fold -> residual blocks, downsample by 2, residual blocks -> vector
    decoder  vector -> small map -> residual blocks, upsample by 2, residual blocks -> unfold -> (C', H, W)
"""

import math
from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.nets.layers import Condition, default_fold, groups, need_divisor, need_one_picture, zero_init
from genflow.specs import NetSpec
from genflow.text import Label

READS_TEXT = True  # read by `genflow.nets`: captions can stand in the place of labels


class Block(nn.Module):
    """A residual block: norm, SiLU, conv, norm, modulation by time and class, SiLU, conv."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups(channels), channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = zero_init(nn.Linear(condition, 2 * channels))
        self.norm2 = nn.GroupNorm(groups(channels), channels)
        self.conv2 = zero_init(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulate(c)[:, :, None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))


class Encoder(nn.Module):
    """Map a picture (B, C, H, W) to a vector (B, *outputs); see `build`."""

    def __init__(self, ports: NetSpec, classes: int, fold: int, side: int, width: int, blocks: int) -> None:
        super().__init__()
        self.fold = fold
        self.condition = Condition(width, classes, ports.time, ports.second_time, ports.text)
        self.enter = nn.Conv2d(ports.inputs[0] * fold**2, width, 3, padding=1)
        self.high = nn.ModuleList(Block(width, width) for _ in range(blocks))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.low = nn.ModuleList(Block(2 * width, width) for _ in range(blocks))
        self.norm = nn.GroupNorm(groups(2 * width), 2 * width)
        numbers = 2 * width * math.ceil(side / 2) ** 2
        self.leave = nn.Linear(numbers, math.prod(ports.outputs), bias=ports.offset)
        self.outputs = ports.outputs

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        c = F.silu(self.condition(t, label, x, r))
        h = self.enter(F.pixel_unshuffle(x, self.fold))
        for block in self.high:
            h = block(h, c)
        h = self.down(h)
        for block in self.low:
            h = block(h, c)
        return self.leave(F.silu(self.norm(h)).flatten(1)).unflatten(1, self.outputs)


class Decoder(nn.Module):
    """Map a vector (B, *inputs) to a picture (B, C, H, W); see `build`."""

    def __init__(self, ports: NetSpec, classes: int, fold: int, side: int, width: int, blocks: int) -> None:
        super().__init__()
        self.fold, self.side, self.small = fold, side, math.ceil(side / 2)
        self.condition = Condition(width, classes, ports.time, ports.second_time, ports.text)
        self.enter = nn.Linear(math.prod(ports.inputs), 2 * width * self.small**2)
        self.low = nn.ModuleList(Block(2 * width, width) for _ in range(blocks))
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.high = nn.ModuleList(Block(width, width) for _ in range(blocks))
        self.norm = nn.GroupNorm(groups(width), width)
        self.leave = nn.Conv2d(width, ports.outputs[0] * fold**2, 3, padding=1)

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        c = F.silu(self.condition(t, label, x, r))
        h = self.enter(x.flatten(1)).unflatten(1, (-1, self.small, self.small))
        for block in self.low:
            h = block(h, c)
        h = self.up(F.interpolate(h, size=(self.side, self.side), mode="nearest"))
        for block in self.high:
            h = block(h, c)
        return F.pixel_shuffle(self.leave(F.silu(self.norm(h))), self.fold)


def build(
    ports: NetSpec,
    classes: int,
    *,
    width: Annotated[int, Field(ge=1, le=4096)] = 32,
    blocks: Annotated[int, Field(ge=1, le=256)] = 2,
    fold: Annotated[int, Field(ge=0)] = 0,
) -> nn.Module:
    """Build an encoder if the input is a picture and the output a vector, and a decoder in the opposite case.

    Args:
        ports: input and output shapes.
        classes: the number of classes; 0: unconditional.
        width: channels at the finer of the two scales; the coarser one has twice as many.
        blocks: residual blocks per scale.
        fold: side of the pixel squares that are folded into channels; 0: 1 below 16 pixels, 2 up to 64, 4 above.

    Raises:
        UsageError: not exactly one of input and output is a picture, or fold does not divide its side.
    """
    size, is_encoder = need_one_picture("conv", ports)
    fold = need_divisor(size, fold or default_fold(size), "fold")
    kind = Encoder if is_encoder else Decoder
    return kind(ports, classes, fold, size // fold, width, blocks)


def of_size(size: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """No paper scales such a pair of nets: width and blocks grow from 32 channels and 2 blocks as `unet` grows."""
    width, blocks = {"s": (64, 3), "m": (128, 3), "l": (192, 4), "xl": (256, 4)}[size]
    return {"width": width, "blocks": blocks}
