"""Convolutional encoder and decoder: a picture to a vector, and a vector to a picture.

    encoder  (C, H, W) -> fold -> residual blocks, halving twice -> vector
    decoder  vector -> small map -> residual blocks, doubling twice -> unfold -> (C', H, W)
"""

import math
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.nets.layers import Condition, default_fold, groups, need_divisor, need_one_picture, zero_init
from genflow.specs import NetSpec


class Block(nn.Module):
    """norm, SiLU, conv, modulation by class, norm, SiLU, conv; residual."""

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
    """A picture to a vector."""

    def __init__(self, ports: NetSpec, classes: int, fold: int, side: int, width: int, blocks: int) -> None:
        super().__init__()
        self.fold = fold
        self.condition = Condition(width, classes, ports.time, ports.second_time)
        self.enter = nn.Conv2d(ports.inputs[0] * fold**2, width, 3, padding=1)
        self.high = nn.ModuleList(Block(width, width) for _ in range(blocks))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.low = nn.ModuleList(Block(2 * width, width) for _ in range(blocks))
        self.norm = nn.GroupNorm(groups(2 * width), 2 * width)
        numbers = 2 * width * math.ceil(side / 2) ** 2
        self.leave = nn.Linear(numbers, math.prod(ports.outputs), bias=ports.offset)
        self.outputs = ports.outputs

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Tensor | None = None, r: Tensor | None = None
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
    """A vector to a picture."""

    def __init__(self, ports: NetSpec, classes: int, fold: int, side: int, width: int, blocks: int) -> None:
        super().__init__()
        self.fold, self.side, self.small = fold, side, math.ceil(side / 2)
        self.condition = Condition(width, classes, ports.time, ports.second_time)
        self.enter = nn.Linear(math.prod(ports.inputs), 2 * width * self.small**2)
        self.low = nn.ModuleList(Block(2 * width, width) for _ in range(blocks))
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.high = nn.ModuleList(Block(width, width) for _ in range(blocks))
        self.norm = nn.GroupNorm(groups(width), width)
        self.leave = nn.Conv2d(width, ports.outputs[0] * fold**2, 3, padding=1)

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Tensor | None = None, r: Tensor | None = None
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
    """An encoder if a picture goes in and a vector comes out, a decoder if it is the other way round.

    Args:
        ports: what goes in and comes out.
        classes: the number of classes; 0 for none.
        width: channels at the finer of the two scales.
        blocks: residual blocks a scale.
        fold: pixels folded into channels, along each side; 0: 1 below 16 pixels, 2 up to 64, 4 above.

    Raises:
        UsageError: not exactly one of the ports is a picture, or fold does not divide the size.
    """
    size, is_encoder = need_one_picture("conv", ports)
    fold = need_divisor(size, fold or default_fold(size), "fold")
    kind = Encoder if is_encoder else Decoder
    return kind(ports, classes, fold, size // fold, width, blocks)
