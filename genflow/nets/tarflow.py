"""TarFlow: a stack of autoregressive flows over patches; each is a causal transformer, in alternating directions.

    block:  z_i = T(x_i; f(x_1, ..., x_{i-1}, label)),    i = 1..N patches

T maps each number of a patch separately: an affine map and, if bins > 0, a rational-quadratic spline after it
(maths/splines.py). So the Jacobian is triangular, and the density takes one parallel pass per block. The inverse is
computed patch by patch, with cached keys and values of the earlier patches.

References:
    Normalizing Flows are Capable Generative Models (Zhai et al., 2024)   https://arxiv.org/abs/2412.06329
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.maths import splines
from genflow.nets.layers import Condition, attend, need_heads, need_patch, need_pictures, patch_for, zero_init
from genflow.specs import NetSpec
from genflow.text import Label

FLOW = True  # read by `genflow.nets`: the net is invertible and returns (z, log|det|)
READS_TEXT = True  # captions can stand in the place of labels

# A Muon step changes the weights of `leave` by lr whatever the gradient, and so its outputs by
# lr sqrt(width) OUTPUT_SCALE.
OUTPUT_SCALE = 0.3

Step = tuple[Tensor, Tensor, Tensor]  # a result, and the keys and values with those of one more patch
Cache = list[Tensor]  # keys and values, (B, heads, patches so far, D) each; empty at first


class Layer(nn.Module):
    """Causal attention and MLP: h (B, N, width) -> (B, N, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zero_init(nn.Linear(width, width))
        self.up = nn.Linear(width, 4 * width)
        self.down = zero_init(nn.Linear(4 * width, width))

    def forward(self, h: Tensor, cache: Cache | None = None) -> Tensor:
        h = h + self.attention(self.norm1(h), cache)
        return h + self.down(F.relu(self.up(self.norm2(h))).square())  # GELU would take 1/8 of a CPU step

    def attention(self, h: Tensor, cache: Cache | None) -> Tensor:
        """Attention of patches to themselves and earlier ones: of all patches, or with a cache of the newest one."""
        q, k, v = self._heads(h)
        if cache is not None:
            cache[:] = [torch.cat(pair, 2) for pair in zip(cache, (k, v), strict=True)] if cache else [k, v]
            k, v = cache
        return self.out(attend(q, k, v, causal=cache is None).transpose(1, 2).reshape(h.shape).to(h.dtype))

    def _heads(self, h: Tensor) -> Tensor:
        """Queries, keys and values (3, B, heads, N, D/heads)."""
        B, N, D = h.shape
        return self.qkv(h).reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).contiguous()

    def step(self, h: Tensor, keys: Tensor, values: Tensor, i: Tensor) -> Step:
        """`forward` of patch i alone, h (B, 1, width), with keys and values (B, heads, N, D/heads) of fixed size.

        So an exported program needs no loop over the patches: unrolled, the layers would be there once for each patch.
        """
        q, k, v = self._heads(self.norm1(h))
        number = torch.arange(keys.shape[2], device=h.device)[None, None, :, None]
        at = i[:, None, None, None]
        keys, values = torch.where(number == at, k, keys), torch.where(number == at, v, values)
        mask = torch.where(number <= at, 0.0, -math.inf).mT.to(h.dtype)
        h = h + self.out(attend(q, keys, values, mask=mask).transpose(1, 2).reshape(h.shape))
        return h + self.down(F.relu(self.up(self.norm2(h))).square()), keys, values


class Block(nn.Module):
    """One autoregressive flow over a sequence of N patches of D numbers each."""

    def __init__(self, N: int, D: int, condition: Condition, width: int, depth: int, heads: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.condition = condition
        self.enter = nn.Linear(D, width)
        self.start = nn.Parameter(torch.zeros(width))  # the input in the position before the first patch
        self.position = nn.init.normal_(nn.Parameter(torch.empty(N, width)), std=0.02)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = zero_init(nn.Linear(width, D * splines.parameter_count(bins)))

    def forward(
        self, x: Tensor, label: Label | None, *, inverse: bool = False, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """x (B, N, D) -> z (B, N, D) and log |det dz/dx| (B,); with `inverse` from z to x."""
        return self._inverse(x, label, guidance) if inverse else self._forward(x, label)

    def step(self, z: Tensor, before: Tensor, i: Tensor, label: Label, keys: Tensor, values: Tensor) -> Step:
        """The parameters of patch i for the inverse, with the layers' keys and values of the earlier patches.

        Args:
            z: (B, D) patch i of the output; only its rows are read.
            before: (B, D) patch i - 1 of the inverse; any numbers for the first patch.
            i: (B,) the number of the patch.
            label: the condition.
            keys, values: (B, layers, heads, N, D/heads); those of patch i are filled in.
        """
        h = torch.where(i[:, None] == 0, self.start, self.enter(before))
        h = (h + self.position[i] + self.condition(None, label, z))[:, None]
        parts = []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            h, *part = layer.step(h, keys[:, number], values[:, number], i)
            parts.append(part)
        new_keys, new_values = (torch.stack(each, 1) for each in zip(*parts, strict=True))
        return self.params(h)[:, 0], new_keys, new_values

    def _forward(self, x: Tensor, label: Label | None) -> tuple[Tensor, Tensor]:
        before = self.enter(x[:, :-1])
        h = torch.cat([self.start.expand(x.shape[0], 1, -1).to(before.dtype), before], 1) + self.position
        h = h + self.condition(None, label, x)[:, None]
        for layer in self.layers:
            h = layer(h)
        z, slopes = splines.transform(x, self.params(h), self.bins)
        return z, slopes.flatten(1).sum(1)

    def params(self, h: Tensor) -> Tensor:
        """The parameters of each number's map (B, N, D, P), in single precision or better even under autocast."""
        with torch.autocast(h.device.type, enabled=False):
            h = OUTPUT_SCALE * self.norm(h.to(self.norm.weight.dtype))
            return self.leave(h).unflatten(2, (-1, splines.parameter_count(self.bins)))

    def _inverse(self, z: Tensor, label: Label | None, guidance: float) -> tuple[Tensor, Tensor]:
        """z -> x, patch by patch; each layer caches the keys and values of the earlier patches."""
        c = self.condition(None, label, z)
        caches: list[Cache] = [[] for _ in self.layers]
        h = self.start.expand(z.shape[0], -1)
        found, log_det = [], z.new_zeros(z.shape[:1])
        for i in range(z.shape[1]):
            h = (h + self.position[i] + c)[:, None]
            for layer, cache in zip(self.layers, caches, strict=True):
                h = layer(h, cache)
            params = self.params(h)[:, 0]
            if guidance != 1:
                with_label, without = params.chunk(2)
                params = torch.lerp(without, with_label, guidance).repeat(2, 1, 1)
            x, slopes = splines.transform(z[:, i], params, self.bins, inverse=True)
            found.append(x)
            log_det = log_det + slopes.sum(1)
            h = self.enter(x)
        return torch.stack(found, 1), log_det


class TarFlow(nn.Module):
    """The TarFlow network; see `build`."""

    def __init__(
        self, ports: NetSpec, classes: int, patch: int, width: int, depth: int, heads: int, bins: int, blocks: int
    ) -> None:
        super().__init__()
        C, H, W = ports.inputs
        self.patch, self.grid = patch, (H // patch, W // patch)
        self.patches, self.block_count = self.grid[0] * self.grid[1], blocks
        self.width, self.depth, self.heads = width, depth, heads
        N, D = self.patches, C * patch**2
        self.blocks = nn.ModuleList(
            Block(N, D, Condition(width, classes, time=False, text=ports.text), width, depth, heads, bins)
            for _ in range(blocks)
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        label: Label | None = None,
        r: Tensor | None = None,
        *,
        inverse: bool = False,
        guidance: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """x (B, *inputs) -> z and log |det dz/dx| (B,); with `inverse` z -> x and log |det dx/dz| (B,).

        Guidance other than 1 applies only to the inverse. The second half of the batch must then repeat the first
        half with the label for "no label". The parameters of the map are interpolated between the two halves.
        """
        tokens = F.pixel_unshuffle(x, self.patch).flatten(2).mT  # (B, N, C patch^2)
        log_det = x.new_zeros(x.shape[:1])
        order = list(enumerate(self.blocks))
        for i, block in reversed(order) if inverse else order:
            sequence = tokens.flip(1) if i % 2 else tokens
            mapped, change = block(sequence, label, inverse=inverse, guidance=guidance)
            tokens = mapped.flip(1) if i % 2 else mapped
            log_det = log_det + change
        return F.pixel_shuffle(tokens.mT.unflatten(2, self.grid), self.patch), log_det

    def step(
        self, block: int, z: Tensor, before: Tensor, i: Tensor, keys: Tensor, values: Tensor,
        labels: Sequence[Label], guidance: float = 1.0,
    ) -> Step:  # fmt: skip
        """Invert patch i of a block, in the order of the block; the last dimension of a patch is C patch^2.

        Args:
            block: its number.
            z, before, i: as in `Block.step`.
            keys, values: as in `Block.step`, for each of the labels in turn along the dimension of the layers.
            labels: the condition; with guidance also the condition without a label.
            guidance: the guidance scale.
        """
        own = self.blocks[block]
        assert isinstance(own, Block)
        parts = zip(labels, keys.chunk(len(labels), 1), values.chunk(len(labels), 1), strict=True)
        params, new_keys, new_values = zip(*(own.step(z, before, i, label, k, v) for label, k, v in parts), strict=True)
        used = params[0] if len(labels) == 1 else torch.lerp(params[1], params[0], guidance)
        x, _ = splines.transform(z, used, own.bins, inverse=True)
        return x, torch.cat(new_keys, 1), torch.cat(new_values, 1)

    @property
    def cache_shape(self) -> tuple[int, ...]:
        """The shape of `keys` and of `values` for one label, without the batch dimension."""
        return self.depth, self.heads, self.patches, self.width // self.heads


def build(
    ports: NetSpec,
    classes: int,
    *,
    patch: Annotated[int, Field(ge=0)] = 0,
    width: Annotated[int, Field(ge=1, le=8192)] = 128,
    blocks: Annotated[int, Field(ge=1, le=64)] = 2,
    depth: Annotated[int, Field(ge=1, le=64)] = 4,
    heads: Annotated[int, Field(ge=1, le=256)] = 4,
    bins: Annotated[int, Field(ge=0, le=128)] = 8,
) -> nn.Module:
    """Build a transformer autoregressive flow for pictures.

    Args:
        ports: input and output shapes; both are pictures of the same size.
        classes: the number of classes; 0: unconditional.
        patch: side of a patch in pixels; 0: the smallest divisor of the side, at least 2, that gives at most 8 x 8
            patches.
        width: channels of a token.
        blocks: autoregressive flows; every second one runs from the last patch to the first.
        depth: layers per block.
        heads: attention heads; must divide width.
        bins: bins of the splines; 0: only affine maps, as in the paper.

    Raises:
        UsageError: input or output is not a picture, patch does not divide its side, or heads does not divide width.
    """
    size = need_pictures("tarflow", ports)
    patch, heads = need_patch(size, patch), need_heads(width, heads)
    return TarFlow(ports, classes, patch, width, depth, heads, bins, blocks)


def of_size(size: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The nets of TarFlow for AFHQ-256 (l) and ImageNet-128 (xl) (Zhai et al., 2024, section 4), and two smaller ones.

    There are at most 32 x 32 patches, as in both.
    """
    width, blocks, depth, heads = {
        "s": (384, 4, 4, 6), "m": (512, 8, 4, 8), "l": (768, 8, 8, 12), "xl": (1024, 8, 8, 16),
    }[size]  # fmt: skip
    return {"patch": patch_for(shape[1], 32), "width": width, "blocks": blocks, "depth": depth, "heads": heads}
