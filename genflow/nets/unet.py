"""A fast U-Net: squares of pixels are folded into channels, so the convolutions work at a lower resolution.

    28x28 -> (fold 2) 14x14 x 32 -> 7x7 x 64, attention only at the lowest resolution -> back, with skip connections

Folding squares of 2 x 2 pixels reduces the number of multiplications by a factor of four.

References:
    U-Net (Ronneberger et al., 2015), as used by DDPM (Ho et al., 2020) and ADM (Dhariwal, Nichol, 2021)
    simple diffusion (Hoogeboom et al., 2023), for folding pixels   https://arxiv.org/abs/2301.11093
"""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.nets.convolutions import Enlarge, Pointwise
from genflow.nets.layers import Condition, attend, default_fold, groups, need_divisor, need_pictures, zero_init
from genflow.specs import NetSpec
from genflow.text import Label

READS_TEXT = True  # read by `genflow.nets`: captions can stand in the place of labels


class Block(nn.Module):
    """A residual block: norm, SiLU, conv, norm, modulation by time and class, SiLU, conv."""

    def __init__(self, inputs: int, outputs: int, condition: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups(inputs), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulate = zero_init(nn.Linear(condition, 2 * outputs))
        self.norm2 = nn.GroupNorm(groups(outputs), outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = Pointwise(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(c)[:, :, None, None].chunk(2, 1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """Residual self-attention over all pixels of x (B, C, H, W), with normalized queries and keys (QK-norm)."""

    def __init__(self, channels: int, head: int = 32) -> None:
        super().__init__()
        self.heads = next(n for n in range(max(1, channels // head), 0, -1) if channels % n == 0)
        self.norm = nn.GroupNorm(groups(channels), channels)
        self.qkv = Pointwise(channels, 3 * channels, 1)
        self.out = zero_init(Pointwise(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.mT.contiguous().unbind(1)  # (B, heads, N, D)
        q, k = F.normalize(q, dim=-1) * q.shape[-1] ** 0.5, F.normalize(k, dim=-1) * q.shape[-1] ** 0.5
        return x + self.out(attend(q, k, v.to(q.dtype)).mT.reshape(B, C, H, W).to(x.dtype))


class UNet(nn.Module):
    """The U-Net; see `build`."""

    def __init__(
        self, ports: NetSpec, classes: int, patch: int, widths: list[int], blocks: int, attention: bool, dropout: float
    ) -> None:
        super().__init__()
        self.patch = patch
        inputs, outputs = ports.inputs[0] * patch**2, ports.outputs[0] * patch**2
        condition = 4 * widths[0]
        self.condition = Condition(condition, classes, ports.time, ports.second_time, ports.text)
        self.enter = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, channels = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            if level:
                self.down.append(nn.Conv2d(channels, width, 3, stride=2, padding=1))
                channels = width
                skips.append(channels)
            for _ in range(blocks):
                self.down.append(Block(channels, width, condition, dropout))
                channels = width
                skips.append(channels)
        self.middle = nn.ModuleList([Block(channels, channels, condition, dropout)])
        if attention:
            self.middle.extend([Attention(channels), Block(channels, channels, condition, dropout)])
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(Block(channels + skips.pop(), width, condition, dropout))
                channels = width
            if level:
                self.up.append(Enlarge(channels, channels, 3, padding=1))
        self.norm = nn.GroupNorm(groups(channels), channels)
        self.leave = zero_init(nn.Conv2d(channels, outputs, 3, padding=1))

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        c = F.silu(self.condition(t, label, x, r))  # (B, condition)
        h = self.enter(F.pixel_unshuffle(x, self.patch))
        skips = [h]
        for layer in self.down:
            h = layer(h, c) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, c) if isinstance(layer, Block) else layer(h)
        for layer in self.up:
            if isinstance(layer, Block):
                h = layer(torch.cat([h, skips.pop()], 1), c)
            else:  # the size comes from the next skip connection, so odd sizes work
                h = layer(h, skips[-1].shape[-2:])
        return F.pixel_shuffle(self.leave(F.silu(self.norm(h))), self.patch)


def build(
    ports: NetSpec,
    classes: int,
    *,
    width: Annotated[int, Field(ge=1, le=2048)] = 32,
    multipliers: tuple[Annotated[int, Field(ge=1, le=16)], ...] = (),
    blocks: Annotated[int, Field(ge=1, le=64)] = 1,
    patch: Annotated[int, Field(ge=0)] = 0,
    attention: bool = True,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Build a U-Net for pictures.

    Args:
        ports: input and output shapes; both are pictures of the same size.
        classes: the number of classes; 0: unconditional.
        width: channels at the highest resolution.
        multipliers: channels of each level as multiples of width; empty: levels down to at most 8 pixels a side.
        blocks: residual blocks per level.
        patch: side of the pixel squares that are folded into channels; 0: 1 below 8 pixels, 2 up to 64, 4 above.
        attention: whether the lowest resolution has attention.
        dropout: dropout rate in every block.

    Raises:
        UsageError: input or output is not a picture, or patch does not divide its side.
    """
    size = need_pictures("unet", ports)
    patch = need_divisor(size, patch or default_fold(size, 8), "patch")
    if not multipliers:
        levels, side = 1, size // patch
        while side > 8 or (levels == 1 and side > 4):
            levels, side = levels + 1, (side + 1) // 2
        multipliers = tuple(min(2**level, 4) for level in range(levels))
    return UNet(ports, classes, patch, [width * m for m in multipliers], blocks, attention, dropout)


def of_size(size: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Channels, blocks and multipliers of EDM2's XXS, XS, S and M (Karras et al., 2024, table 2; XXS is of its code).

    Squares of pixels are folded until at most 64 x 64 are left, EDM2's largest grid, and its four levels end at 4 x 4.
    """
    patch = next(p for p in range(1, shape[1] + 1) if shape[1] % p == 0 and shape[1] // p <= 64)
    levels = min(4, max(1, (shape[1] // patch).bit_length() - 2))
    width = {"s": 64, "m": 128, "l": 192, "xl": 256}[size]
    return {"width": width, "multipliers": list(range(1, levels + 1)), "blocks": 3, "patch": patch}
