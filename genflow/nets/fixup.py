"""Residual nets without normalization layers, for the players of a GAN: an encoder and a decoder of pictures.

    h <- h + conv(lrelu((1 + scale) conv(lrelu(h)) + shift))        scale, shift from the class (and the code)

The last convolution of each branch is initialized to 0, and the first is scaled by 1/sqrt(blocks). So the net starts
as its skip connections, and the size of h does not grow with depth. Without normalization no row depends on batch
statistics. The second derivatives in gradient penalties are those of piecewise linear functions, which are cheap and
safe in bfloat16.

References:
    Fixup Initialization: Residual Learning Without Normalization (Zhang, Dauphin, Ma, 2019), with m = 2
    https://arxiv.org/abs/1901.09321
    The GAN is dead; long live the GAN! (Huang et al., 2025), for such nets in a GAN   https://arxiv.org/abs/2501.05441
    cGANs with Projection Discriminator (Miyato, Koyama, 2018), for the class at the end of the encoder
    https://arxiv.org/abs/1802.05637
"""

import math
from itertools import pairwise
from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.nets.convolutions import Pointwise
from genflow.nets.layers import Condition, default_fold, need_divisor, need_one_picture, zero_init
from genflow.specs import NetSpec
from genflow.text import Label

READS_TEXT = True  # read by `genflow.nets`: captions can stand in the place of labels

MIN_SIDE = 4  # pixels per side at which downsampling ends
RELU_GAIN = math.sqrt(2)  # compensates for the loss of scale in a rectifier


def kaiming(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> nn.Conv2d | nn.Linear:
    """Initialize a layer so that its output has `gain` times the scale of its input; the bias is 0."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def unit_condition(width: int, classes: int, ports: NetSpec) -> Condition:
    """An embedding of time and class or caption with entries of unit variance, so that other inputs do not outweigh it.
    """
    condition = Condition(width, classes, ports.time, ports.second_time, ports.text)
    condition.scale_embedding(1.0)
    return condition


def leaky_relu(h: Tensor) -> Tensor:
    """The leaky ReLU with slope 0.2."""
    return F.leaky_relu(h, 0.2)


class Block(nn.Module):
    """A residual block: two convolutions with modulation between them."""

    def __init__(self, channels: int, condition: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = kaiming(nn.Conv2d(channels, channels, 3, padding=1), RELU_GAIN / math.sqrt(blocks))
        self.modulate = zero_init(nn.Linear(condition, 2 * channels))
        self.conv2 = zero_init(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulate(c)[:, :, None, None].chunk(2, 1)
        return h + self.conv2(leaky_relu(self.conv1(leaky_relu(h)) * (1 + scale) + shift))


class Level(nn.Module):
    """The blocks at one resolution."""

    def __init__(self, enter: nn.Module, channels: int, condition: int, blocks: int, total: int) -> None:
        super().__init__()
        self.enter = enter
        self.blocks = nn.ModuleList(Block(channels, condition, total) for _ in range(blocks))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        h = self.enter(h)
        for block in self.blocks:
            h = block(h, c)
        return h


def _match_channels(before: int, after: int) -> nn.Module:
    return kaiming(Pointwise(before, after, 1)) if before != after else nn.Identity()


class Encoder(nn.Module):
    """Map a picture (B, C, H, W) to a vector (B, *outputs); the class modulates the blocks and the last features."""

    def __init__(self, ports: NetSpec, classes: int, fold: int, sides: list[int], width: int, blocks: int) -> None:
        super().__init__()
        self.fold, self.outputs = fold, ports.outputs
        self.condition = unit_condition(width, classes, ports)
        widths = [width * min(2**level, 4) for level in range(len(sides))]
        channels = [ports.inputs[0] * fold**2, *widths]
        enters = [
            kaiming(nn.Conv2d(before, after, 3, stride=2 if level else 1, padding=1))
            for level, (before, after) in enumerate(pairwise(channels))
        ]
        self.levels = nn.ModuleList(
            Level(enter, channels, width, blocks, blocks * len(sides))
            for enter, channels in zip(enters, widths, strict=True)
        )
        self.features = kaiming(nn.Linear(widths[-1] * sides[-1] ** 2, widths[-1]), RELU_GAIN)
        self.modulate = kaiming(nn.Linear(width, widths[-1]))
        self.leave = kaiming(nn.Linear(widths[-1], math.prod(ports.outputs), bias=ports.offset), RELU_GAIN)

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        c = self.condition(t, label, x, r)
        h = F.pixel_unshuffle(x, self.fold)
        for level in self.levels:
            h = level(h, c)
        h = leaky_relu(self.features(leaky_relu(h).flatten(1)))
        return self.leave(h * (1 + self.modulate(c))).unflatten(1, self.outputs)


class Decoder(nn.Module):
    """Map a vector (B, *inputs) to a picture (B, C, H, W); vector and class modulate every block.

    The last convolution works at full resolution.
    """

    def __init__(self, ports: NetSpec, classes: int, fold: int, sides: list[int], width: int, blocks: int) -> None:
        super().__init__()
        self.fold, self.sides = fold, sides
        widths = [width * min(2**level, 4) for level in range(len(sides))]
        code, top = math.prod(ports.inputs), widths[-1]
        self.condition = unit_condition(top, classes, ports)
        self.style = kaiming(nn.Linear(code, top))
        self.enter = kaiming(nn.Linear(top, top * sides[-1] ** 2), RELU_GAIN)
        self.levels = nn.ModuleList(
            Level(_match_channels(before, after), after, top, blocks, blocks * len(sides))
            for before, after in pairwise([top, *widths[::-1]])
        )
        fine = max(1, width // fold**2) if fold > 1 else width
        self.unfold = kaiming(nn.Conv2d(width, fine * fold**2, 3, padding=1), RELU_GAIN)
        self.leave = kaiming(nn.Conv2d(fine, ports.outputs[0], 3, padding=1), RELU_GAIN)

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        c = leaky_relu(self.style(x.flatten(1)) + self.condition(t, label, x, r))
        h = self.enter(c).unflatten(1, (-1, self.sides[-1], self.sides[-1]))
        for level, side in zip(self.levels, reversed(self.sides), strict=True):
            if h.shape[-1] != side:
                h = F.interpolate(h, size=(side, side), mode="nearest")
            h = level(h, c)
        h = F.pixel_shuffle(self.unfold(leaky_relu(h)), self.fold)
        return self.leave(leaky_relu(h))


def build(
    ports: NetSpec,
    classes: int,
    *,
    width: Annotated[int, Field(ge=0, le=4096)] = 0,
    blocks: Annotated[int, Field(ge=1, le=256)] = 1,
    fold: Annotated[int, Field(ge=0)] = 0,
) -> nn.Module:
    """Build an encoder if the input is a picture and the output a vector, and a decoder in the opposite case.

    Args:
        ports: input and output shapes.
        classes: the number of classes; 0: unconditional.
        width: channels at the finest scale; they double at each coarser scale, up to 4 width. 0: 24 for folded pixels,
            else 32.
        blocks: residual blocks per scale.
        fold: side of the pixel squares that are folded into channels; 0: 1 below 16 pixels, 2 up to 64, 4 above.

    Raises:
        UsageError: not exactly one of input and output is a picture, or fold does not divide its side.
    """
    size, is_encoder = need_one_picture("fixup", ports)
    fold = need_divisor(size, fold or default_fold(size), "fold")
    width = width or (24 if fold > 1 else 32)
    sides = [size // fold]
    while sides[-1] > MIN_SIDE:
        sides.append(math.ceil(sides[-1] / 2))
    kind = Encoder if is_encoder else Decoder
    return kind(ports, classes, fold, sides, width, blocks)


def of_size(size: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The 2 blocks per scale of R3GAN for FFHQ-256 and, for m, its 96 finest channels (Huang et al., 2025).

    The other sizes have multiples of these channels.
    """
    return {"width": {"s": 64, "m": 96, "l": 128, "xl": 192}[size], "blocks": 2}
