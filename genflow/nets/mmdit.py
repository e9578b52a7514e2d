"""MM-DiT: two streams, picture and text, with their own weights and joint attention; modulated by time and caption.

    q, k, v = those of the picture's tokens, then those of the text's tokens
    h <- h + gate_a out(attention(q, k, v))                 of each stream, with its own weights
    h <- h + gate_m mlp((1 + scale_m) norm(h) + shift_m)    gates start at 0

The modulation is computed from the time and the pooled caption, or from the time and the class. Data without captions
has no text stream. The last layer's text stream only gives keys and values, because no later layer reads it.

Padding has no weight in the attention. Text follows the picture, so padding is at the end of the sequence.

References:
    Scaling Rectified Flow Transformers (Esser et al., 2024), Stable Diffusion 3   https://arxiv.org/abs/2403.03206
    Scaling Vision Transformers to 22B (Dehghani et al., 2023), for QK-norm        https://arxiv.org/abs/2302.05442
"""

import math
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
from genflow.text import Label, Text

READS_TEXT = True  # read by `genflow.nets`: captions can stand in the place of labels


class Stream(nn.Module):
    """One stream's weights in one layer.

    Args:
        width: channels of a token.
        heads: attention heads.
        writes: whether a later layer reads the stream. If not, it has keys and values and nothing else.
    """

    def __init__(self, width: int, heads: int, *, writes: bool = True) -> None:
        super().__init__()
        self.heads, self.writes = heads, writes
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, (3 if writes else 2) * width)
        self.scale = nn.Parameter(torch.ones(2 if writes else 1, width // heads))  # of keys, and of queries
        self.modulate = zero_init(nn.Linear(width, (6 if writes else 2) * width))
        if writes:
            self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
            self.out = nn.Linear(width, width)
            self.up = nn.Linear(width, 4 * width)
            self.down = nn.Linear(4 * width, width)

    def read(self, h: Tensor, shift: Tensor, scale: Tensor) -> list[Tensor]:
        """Keys, values and, if the stream writes, queries of tokens h (B, N, width), each (B, heads, N, D)."""
        h = self.qkv(self.norm1(h).to(scale.dtype) * (1 + scale) + shift)  # autocast normalizes in float32
        k, v, *q = h.unflatten(-1, (-1, self.heads, h.shape[-1] // (3 if self.writes else 2) // self.heads)).permute(
            2, 0, 3, 1, 4
        )
        k, q = unit_rows(k) * self.scale[0], [unit_rows(each) * self.scale[1] for each in q]
        return [k, v.to(k.dtype), *q]

    def write(self, h: Tensor, attended: Tensor, modulation: list[Tensor]) -> Tensor:
        """The stream h (B, N, width) after attention (B, heads, N, D) and MLP."""
        gate_a, shift_m, scale_m, gate_m = modulation
        h = h + gate_a * self.out(attended.transpose(1, 2).flatten(2).to(h.dtype))
        return h + gate_m * self.down(gelu(self.up(self.norm2(h).to(scale_m.dtype) * (1 + scale_m) + shift_m)))


class Layer(nn.Module):
    """Joint attention of both streams, and an MLP for each.

    Args:
        width: channels of a token.
        heads: attention heads.
        reads_text: whether there is a text stream.
        last: whether this is the last layer, so that nothing reads its text stream.
    """

    def __init__(self, width: int, heads: int, *, reads_text: bool, last: bool) -> None:
        super().__init__()
        self.picture = Stream(width, heads)
        self.text = Stream(width, heads, writes=not last) if reads_text else None

    def forward(
        self, h: Tensor, text: Tensor | None, c: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The next h (B, N, width) and text (B, L, width).

        Args:
            h: the picture's tokens (B, N, width).
            text: the text's tokens (B, L, width), or None.
            c: the condition (B, width).
            mask: added to the scores of the attention, (B, 1, 1, N + L); None: every token has weight.
        """
        N, (shift, scale, *rest) = h.shape[1], self.picture.modulate(c)[:, None].chunk(6, -1)
        k, v, q = self.picture.read(h, shift, scale)
        if self.text is None or text is None:
            return self.picture.write(h, attend(q, k, v), rest), None
        shift, scale, *of_text = self.text.modulate(c)[:, None].chunk(6 if self.text.writes else 2, -1)
        k_text, v_text, *q_text = self.text.read(text, shift, scale)
        attended = attend(
            torch.cat([q, *q_text], 2), torch.cat([k, k_text], 2), torch.cat([v, v_text], 2), mask=mask
        )
        h = self.picture.write(h, attended[:, :, :N], rest)
        return h, self.text.write(text, attended[:, :, N:], of_text) if self.text.writes else None


class MMDiT(nn.Module):
    """The MM-DiT network; see `build`."""

    position: Tensor

    def __init__(self, ports: NetSpec, classes: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patch, text = patch, ports.text
        self.condition = Condition(width, classes, ports.time, ports.second_time, text=text)
        self.enter = nn.Linear(ports.inputs[0] * patch**2, width)
        self.enter_text = nn.Linear(text.tokens, width) if text else None
        self.grid = (ports.inputs[1] // patch, ports.inputs[2] // patch)
        self.register_buffer("position", sine_positions(*self.grid, width), persistent=False)
        self.layers = nn.ModuleList(
            Layer(width, heads, reads_text=text is not None, last=number == depth - 1) for number in range(depth)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = zero_init(nn.Linear(width, 2 * width))
        self.leave = zero_init(nn.Linear(width, ports.outputs[0] * patch**2))

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        c = F.silu(self.condition(t, label, x, r))  # (B, width)
        h = F.pixel_unshuffle(x, self.patch)
        grid = (h.shape[2], h.shape[3])
        h = self.enter(h.flatten(2).mT) + self._positions(grid, x)  # (B, N, width)
        text, mask = self._read(label, h)
        for layer in self.layers:
            h, text = layer(h, text, c, mask)
        shift, scale = self.modulate(c)[:, None].chunk(2, -1)
        h = self.leave(self.norm(h) * (1 + scale) + shift)  # (B, N, C patch^2)
        return F.pixel_shuffle(h.mT.unflatten(2, grid), self.patch)

    def _positions(self, grid: tuple[int, int], x: Tensor) -> Tensor:
        if grid == self.grid:
            return self.position
        return sine_positions(*grid, self.position.shape[1]).to(x.device)

    def _read(self, label: Label | None, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The text's tokens (B, L, width), and what is added to the scores: 0, and -inf for padding."""
        if self.enter_text is None or not isinstance(label, Text):
            return None, None
        mask = F.pad(label.mask, (h.shape[1], 0), value=True)[:, None, None]
        bias = torch.zeros(mask.shape, device=h.device, dtype=h.dtype).masked_fill(~mask, -math.inf)
        return self.enter_text(unit_rows(label.tokens.to(h.dtype))), bias


def sine_positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed positions of a grid of patches, (rows columns, width): cosines and sines of the row, then of the column.

    Coordinates are counted from the centre, so a patch in the centre of a larger picture has the same position.
    """
    frequencies = 10_000.0 ** -(torch.arange(-(-width // 4)) / (width / 4))
    y, x = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in (rows, columns)), indexing="ij")
    phases = [of.reshape(-1, 1) * frequencies for of in (y, x)]
    return torch.cat([part for phase in phases for part in (phase.cos(), phase.sin())], 1)[:, :width]


def build(
    ports: NetSpec,
    classes: int,
    *,
    patch: Annotated[int, Field(ge=0)] = 0,
    width: Annotated[int, Field(ge=1, le=8192)] = 192,
    depth: Annotated[int, Field(ge=1, le=256)] = 6,
    heads: Annotated[int, Field(ge=1, le=256)] = 3,
) -> nn.Module:
    """Build a diffusion transformer for pictures or latents that reads every token of a caption.

    Args:
        ports: input and output shapes; both are pictures of the same size.
        classes: the number of classes; 0: no labels.
        patch: side of a patch in pixels; 0: the smallest divisor of the side, at least 2, that gives at most 8 x 8
            patches.
        width: channels of a token.
        depth: the number of layers.
        heads: attention heads; must divide width.

    Raises:
        UsageError: input or output is not a picture, patch does not divide its side, or heads does not divide width.
    """
    size = need_pictures("mmdit", ports)
    return MMDiT(ports, classes, need_patch(size, patch), width, depth, need_heads(width, heads))


def of_size(size: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Depth d, width 64 d and d heads, as in Stable Diffusion 3 (Esser et al., 2024, section 5.3).

    Its smallest net has 15 layers, and its published one, Medium, has 24. There are at most 16 x 16 patches, as it has
    of the latents of 256 pixels.
    """
    depth = {"s": 6, "m": 12, "l": 18, "xl": 24}[size]
    return {"patch": patch_for(shape[1], 16), "width": 64 * depth, "depth": depth, "heads": depth}
