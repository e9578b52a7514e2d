"""A residual MLP: for points of the plane, for digits, and as encoder or decoder of vectors.

    h <- h + W2 SiLU((1 + scale) norm(W1 h) + shift),   (scale, shift) from time and class
"""

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from genflow.facts import Ports
from genflow.nets.layers import Condition, zero


class Block(nn.Module):
    """One residual layer, modulated by time and class."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = zero(nn.Linear(condition, 2 * width))
        self.up = nn.Linear(width, width)
        self.act = nn.SiLU()
        self.down = nn.Linear(width, width)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulate(c).chunk(2, -1)
        return h + self.down(self.act(self.up(self.norm(h) * (1 + scale) + shift)))


class MLP(nn.Module):
    """Any shape in, any shape out."""

    def __init__(self, ports: Ports, classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.outputs = ports.outputs
        self.condition = Condition(width, classes, ports.time, ports.second_time)
        self.act = nn.SiLU()
        self.enter = nn.Linear(math.prod(ports.inputs), width)
        self.blocks = nn.ModuleList(Block(width, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, math.prod(ports.outputs), bias=ports.offset)

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Tensor | None = None, r: Tensor | None = None
    ) -> Tensor:
        c = self.act(self.condition(t, label, x, r))  # (B, width)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, c)
        return self.leave(self.norm(h)).unflatten(1, self.outputs)


def build(
    ports: Ports,
    classes: int,
    *,
    width: Annotated[int, Field(ge=1, le=8192)] = 256,
    depth: Annotated[int, Field(ge=1, le=256)] = 4,
) -> nn.Module:
    """A residual MLP.

    Args:
        ports: what goes in and comes out.
        classes: the number of classes; 0 for none.
        width: of the hidden layers.
        depth: the number of residual layers.
    """
    return MLP(ports, classes, width, depth)
