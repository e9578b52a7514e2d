"""A residual MLP for any shapes: points of the plane, small pictures, and vectors.

    h <- h + W2 SiLU(W1 ((1 + scale) norm(h) + shift)),   (scale, shift) from time and class
"""

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from genflow.nets.layers import Condition, zero_init
from genflow.specs import NetSpec
from genflow.text import Label

READS_TEXT = True  # read by `genflow.nets`: captions can stand in the place of labels

MAX_FOURIER_INPUTS, MAX_FREQUENCY = 3, 50  # inputs with more numbers get no Fourier features; rad per unit


class Block(nn.Module):
    """One residual layer, modulated by time and class: h (B, width), c (B, condition) -> (B, width)."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = zero_init(nn.Linear(condition, 2 * width))
        self.up = nn.Linear(width, width)
        self.act = nn.SiLU()
        self.down = nn.Linear(width, width)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulate(c).chunk(2, -1)
        return h + self.down(self.act(self.up(self.norm(h) * (1 + scale) + shift)))


class MLP(nn.Module):
    """The MLP network, x (B, *inputs) -> (B, *outputs); see `build`."""

    omega: Tensor

    def __init__(self, ports: NetSpec, classes: int, width: int, depth: int, waves: int) -> None:
        super().__init__()
        self.outputs = ports.outputs
        self.condition = Condition(width, classes, ports.time, ports.second_time, ports.text)
        self.act = nn.SiLU()
        inputs = math.prod(ports.inputs)
        self.register_buffer("omega", torch.logspace(0, math.log10(MAX_FREQUENCY), waves), persistent=False)
        self.waves = waves if inputs <= MAX_FOURIER_INPUTS else 0
        self.enter = nn.Linear(inputs * (1 + 2 * self.waves), width)
        self.blocks = nn.ModuleList(Block(width, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, math.prod(ports.outputs), bias=ports.offset)

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        c = self.act(self.condition(t, label, x, r))  # (B, width)
        h = x.flatten(1)
        if self.waves:
            phase = (h[:, :, None] * self.omega).flatten(1)
            h = torch.cat([h, phase.cos(), phase.sin()], 1)
        h = self.enter(h)
        for block in self.blocks:
            h = block(h, c)
        return self.leave(self.norm(h)).unflatten(1, self.outputs)


def build(
    ports: NetSpec,
    classes: int,
    *,
    width: Annotated[int, Field(ge=1, le=8192)] = 128,
    depth: Annotated[int, Field(ge=1, le=256)] = 4,
    waves: Annotated[int, Field(ge=0, le=64)] = 8,
) -> nn.Module:
    """Build a residual MLP.

    Args:
        ports: input and output shapes.
        classes: the number of classes; 0: unconditional.
        width: units of the hidden layers.
        depth: the number of residual layers.
        waves: frequencies, from 1 to 50 rad, of additional Fourier features of each coordinate (Tancik et al., 2020,
            https://arxiv.org/abs/2006.10739); inputs of more than three numbers get none.
    """
    return MLP(ports, classes, width, depth, waves)


def of_size(size: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Width and depth grow together, as those of DiT do (Peebles, Xie, 2023, table 1); no paper scales this net."""
    width, depth = {"s": (384, 6), "m": (768, 12), "l": (1024, 24), "xl": (1152, 28)}[size]
    return {"width": width, "depth": depth}
