"""DiT: a transformer over patches with QK-norm; every layer is modulated by time and class (adaLN-zero).

    h <- h + gate_a attention((1 + scale_a) norm(h) + shift_a)
    h <- h + gate_m mlp((1 + scale_m) norm(h) + shift_m)          gates start at 0

References:
    Scalable Diffusion Models with Transformers (Peebles, Xie, 2023)   https://arxiv.org/abs/2212.09748
    Scaling Vision Transformers to 22B (Dehghani et al., 2023), for QK-norm   https://arxiv.org/abs/2302.05442
"""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.nets.layers import (
    Condition,
    attend,
    gelu,
    need_heads,
    need_patch,
    need_pictures,
    patch_for,
    unit_rows,
    zero_init,
)
from genflow.specs import NetSpec
from genflow.text import Label

READS_TEXT = True  # read by `genflow.nets`: captions can stand in the place of labels


class Layer(nn.Module):
    """Attention and MLP, both modulated by time and class: h (B, N, width), c (B, width) -> (B, N, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.modulate = zero_init(nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulate(c)[:, None].chunk(6, -1)
        # Autocast normalizes in float32. What follows is a matrix product, so the modulation can have its dtype.
        normed = self.norm1(h).to(scale_a.dtype)
        h = h + gate_a * self.attention(normed * (1 + scale_a) + shift_a)
        normed = self.norm2(h).to(scale_m.dtype)
        return h + gate_m * self.down(gelu(self.up(normed * (1 + scale_m) + shift_m)))

    def attention(self, h: Tensor) -> Tensor:
        B, N, D = h.shape
        q, k, v = self.qkv(h).reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).contiguous()
        q, k = unit_rows(q), unit_rows(k)
        return self.out(attend(q, k, v.to(q.dtype)).transpose(1, 2).reshape(B, N, D).to(h.dtype))


class DiT(nn.Module):
    """The DiT network; see `build`."""

    def __init__(self, ports: NetSpec, classes: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patch = patch
        self.grid = (ports.inputs[1] // patch, ports.inputs[2] // patch)
        self.condition = Condition(width, classes, ports.time, ports.second_time, ports.text)
        self.enter = nn.Linear(ports.inputs[0] * patch**2, width)
        self.position = nn.init.normal_(nn.Parameter(torch.empty(self.grid[0] * self.grid[1], width)), std=0.02)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = zero_init(nn.Linear(width, 2 * width))
        self.leave = zero_init(nn.Linear(width, ports.outputs[0] * patch**2))

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        c = F.silu(self.condition(t, label, x, r))  # (B, width)
        tokens = F.pixel_unshuffle(x, self.patch).flatten(2).mT  # (B, N, C patch^2)
        h = self.enter(tokens) + self.position
        for layer in self.layers:
            h = layer(h, c)
        shift, scale = self.modulate(c)[:, None].chunk(2, -1)
        h = self.leave(self.norm(h) * (1 + scale) + shift)  # (B, N, C patch^2)
        return F.pixel_shuffle(h.mT.unflatten(2, self.grid), self.patch)


def build(
    ports: NetSpec,
    classes: int,
    *,
    patch: Annotated[int, Field(ge=0)] = 0,
    width: Annotated[int, Field(ge=1, le=8192)] = 128,
    depth: Annotated[int, Field(ge=1, le=256)] = 6,
    heads: Annotated[int, Field(ge=1, le=256)] = 4,
) -> nn.Module:
    """Build a diffusion transformer for pictures.

    Args:
        ports: input and output shapes; both are pictures of the same size.
        classes: the number of classes; 0: unconditional.
        patch: side of a patch in pixels; 0: the smallest divisor of the side, at least 2, that gives at most 8 x 8
            patches.
        width: channels of a token.
        depth: the number of layers.
        heads: attention heads; must divide width.

    Raises:
        UsageError: input or output is not a picture, patch does not divide its side, or heads does not divide width.
    """
    size = need_pictures("dit", ports)
    return DiT(ports, classes, need_patch(size, patch), width, depth, need_heads(width, heads))


def of_size(size: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """DiT-S, B, L and XL (Peebles, Xie, 2023, table 1).

    There are at most 16 x 16 patches, as DiT-XL/2 has of the latents of 256 pixels.
    """
    width, depth, heads = {"s": (384, 12, 6), "m": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}[size]
    return {"patch": patch_for(shape[1], 16), "width": width, "depth": depth, "heads": heads}
