"""The net of Stable Diffusion 3: diffusers' `SD3Transformer2DModel` in plain PyTorch, with the names of its weights.

    h    = conv(x) + positions                 the picture's tokens
    text = context_embedder(tokens)            the text's tokens
    c    = time and pooled caption             modulates both streams, as in `mmdit`
    per block: joint attention of both streams, and an MLP of each

A run of this net can be exported to a folder that diffusers' `StableDiffusion3Pipeline` loads. Its state dict is that
of the model of diffusers, without what cannot change an output: the table of positions, which is computed, and the last
block's queries of text, which no later block reads.

diffusers has no mask for padding. So this net always reads L tokens, those of `ports.text`, and padding is zeros for
it. Neither the numbers in the padding nor its length change a bit, and diffusers computes the same from embeddings in
this form (`SD3.prompt_embeds`).

References:
    Scaling Rectified Flow Transformers (Esser et al., 2024), Stable Diffusion 3   https://arxiv.org/abs/2403.03206
    https://huggingface.co/docs/diffusers/api/models/sd3_transformer2d
"""

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.errors import UsageError
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

EPS = 1e-6  # of every norm, as in diffusers
FREQUENCIES = 128  # of the time embedding


class Norm(nn.RMSNorm):
    """An RMS norm of queries or keys, in single precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class ModulatedNorm(nn.Module):
    """A layer norm, and the vectors of the condition that modulate a block: diffusers' `AdaLayerNormZero`."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts, self.norm = parts, nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.linear = zero_init(nn.Linear(width, parts * width))

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The modulated norm of tokens h (B, N, width), and the other vectors (B, 1, width), for c (B, width)."""
        first, second, *rest = self.linear(c)[:, None].chunk(self.parts, -1)
        # With two vectors this is `AdaLayerNormContinuous`, whose first vector is the scale.
        shift, scale = (first, second) if rest else (second, first)
        return self.norm(h) * (1 + scale) + shift, rest


class JointAttention(nn.Module):
    """Attention of the tokens of picture and text to all of them.

    Args:
        width: channels of a token.
        heads: attention heads.
        qk_norm: whether queries and keys are divided by their root mean square.
        writes: whether the text's tokens attend, too. If not, they only give keys and values.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, writes: bool) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return Norm(width // heads, EPS) if qk_norm else nn.Identity()

        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = norm(), norm()
        self.to_out = nn.ModuleDict({"0": nn.Linear(width, width)})  # a list in diffusers, with a dropout
        self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(2))
        self.norm_added_k = norm()
        self.add_q_proj = nn.Linear(width, width) if writes else None
        self.norm_added_q = norm() if writes else None
        self.to_add_out = nn.Linear(width, width) if writes else None

    def forward(self, h: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """The attention's outputs for h (B, N, width) and, if the text's tokens attend, for text (B, L, width)."""
        v = self._split(torch.cat([self.to_v(h), self.add_v_proj(text)], 1))
        k = [self.norm_k(self._split(self.to_k(h))), self.norm_added_k(self._split(self.add_k_proj(text)))]
        q = [self.norm_q(self._split(self.to_q(h)))]
        if self.add_q_proj is not None and self.norm_added_q is not None:
            q.append(self.norm_added_q(self._split(self.add_q_proj(text))))
        attended = attend(torch.cat(q, 2).to(v.dtype), torch.cat(k, 2).to(v.dtype), v).transpose(1, 2).flatten(2)
        N = h.shape[1]
        return self.to_out["0"](attended[:, :N]), self.to_add_out(attended[:, N:]) if self.to_add_out else None

    def _split(self, h: Tensor) -> Tensor:
        """(B, N, width) -> (B, heads, N, D)."""
        return h.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """An MLP with four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        up = nn.ModuleDict({"proj": nn.Linear(width, 4 * width)})
        self.net = nn.ModuleDict({"0": up, "2": nn.Linear(4 * width, width)})  # a list in diffusers, with a dropout

    def forward(self, h: Tensor) -> Tensor:
        h = self.net["0"]["proj"](h)  # type: ignore[index]
        # in float32 the tanh form: the numbers are those of diffusers
        return self.net["2"](gelu(h) if h.dtype == torch.bfloat16 else F.gelu(h, approximate="tanh"))


class Block(nn.Module):
    """diffusers' `JointTransformerBlock`: joint attention of both streams, and an MLP of each.

    Args:
        width: channels of a token.
        heads: attention heads.
        qk_norm: see `JointAttention`.
        last: whether this is the last block, so that nothing reads its text stream.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, last: bool) -> None:
        super().__init__()
        self.norm1, self.norm1_context = ModulatedNorm(width, 6), ModulatedNorm(width, 2 if last else 6)
        self.attn = JointAttention(width, heads, qk_norm=qk_norm, writes=not last)
        self.norm2, self.ff = nn.LayerNorm(width, EPS, elementwise_affine=False), FeedForward(width)
        self.ff_context = None if last else FeedForward(width)

    def forward(self, h: Tensor, text: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The next h (B, N, width) and text (B, L, width), for the condition c (B, width)."""
        of_picture, modulation = self.norm1(h, c)
        of_text, modulation_of_text = self.norm1_context(text, c)
        attended, attended_text = self.attn(of_picture, of_text)
        h = self._write(h, attended, modulation, self.ff)
        if self.ff_context is not None and attended_text is not None:
            text = self._write(text, attended_text, modulation_of_text, self.ff_context)
        return h, text

    def _write(self, h: Tensor, attended: Tensor, modulation: list[Tensor], mlp: nn.Module) -> Tensor:
        gate, shift, scale, gate_mlp = modulation
        h = h + gate * attended
        return h + gate_mlp * mlp(self.norm2(h) * (1 + scale) + shift)


class Embedding(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class SD3(nn.Module):
    """The net; see `build`.

    Attributes:
        options: the keys of the `config.json` of diffusers that describe it.
        length: L, the tokens of text that it reads.
        normalize: see `build`.
    """

    position: Tensor

    def __init__(
        self, ports: NetSpec, patch: int, width: int, depth: int, heads: int, *, qk_norm: bool, table: int, base: int,
        normalize: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        assert ports.text is not None
        side = max(ports.inputs[1:])
        self.patch, self.length, self.outputs = patch, ports.text.length, ports.outputs[0]
        self.normalize, self.step = normalize, base / table
        self.options: dict[str, Any] = {
            "sample_size": side, "patch_size": patch, "in_channels": ports.inputs[0], "out_channels": self.outputs,
            "num_layers": depth, "attention_head_dim": width // heads, "num_attention_heads": heads,
            "joint_attention_dim": ports.text.tokens, "caption_projection_dim": width,
            "pooled_projection_dim": ports.text.pooled, "pos_embed_max_size": table,
            "dual_attention_layers": [], "qk_norm": "rms_norm" if qk_norm else None,
        }  # fmt: skip
        self.pos_embed = nn.ModuleDict({"proj": nn.Conv2d(ports.inputs[0], width, patch, stride=patch)})
        self.grid = (ports.inputs[1] // patch, ports.inputs[2] // patch)
        self.register_buffer("position", self.positions(*self.grid), persistent=False)
        self.time_text_embed = nn.ModuleDict({
            "timestep_embedder": Embedding(2 * FREQUENCIES, width), "text_embedder": Embedding(ports.text.pooled, width)
        })  # fmt: skip
        self.condition = Condition(width, 0, False, ports.second_time)
        self.context_embedder = nn.Linear(ports.text.tokens, width)
        self.transformer_blocks = nn.ModuleList(
            Block(width, heads, qk_norm=qk_norm, last=number == depth - 1) for number in range(depth)
        )
        self.norm_out = ModulatedNorm(width, 2)
        self.proj_out = zero_init(nn.Linear(width, patch**2 * self.outputs))

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        assert isinstance(label, Text), "a net that reads captions was called without them"
        tokens, pooled = self.prompt_embeds(label)
        time = x.new_zeros(x.shape[0]) if t is None else t
        c = self.time_text_embed["timestep_embedder"](_waves(time).to(x.dtype))
        c = c + self.time_text_embed["text_embedder"](pooled.to(x.dtype))
        c = F.silu(c + self.condition(t, None, x, r))
        h = self.pos_embed["proj"](x)
        grid = (h.shape[2], h.shape[3])
        h = h.flatten(2).mT + (self.position if grid == self.grid else self.positions(*grid).to(x.device))
        text = self.context_embedder(tokens.to(x.dtype))
        for block in self.transformer_blocks:
            h, text = block(h, text, c)
        h = self.proj_out(self.norm_out(h, c)[0])  # (B, N, patch patch outputs): the channel last, as in diffusers
        h = h.unflatten(2, (self.patch**2, self.outputs)).transpose(2, 3).flatten(2)
        return F.pixel_shuffle(h.mT.unflatten(2, grid), self.patch)

    def prompt_embeds(self, text: Text) -> tuple[Tensor, Tensor]:
        """Captions in the form in which pipelines of diffusers take them: what the net reads. Padding is zeros.

        Args:
            text: B captions, none with more than L real tokens.

        Returns:
            `prompt_embeds` (B, L, D) and `pooled_prompt_embeds` (B, P).
        """
        tokens, pooled = text.tokens, text.pooled
        if self.normalize:
            tokens, pooled = unit_rows(tokens), unit_rows(pooled)
        tokens = tokens.masked_fill(~text.mask[..., None], 0)
        return F.pad(tokens, (0, 0, 0, self.length - tokens.shape[1])), pooled

    def positions(self, rows: int, columns: int) -> Tensor:
        """Positions of a grid of patches (rows columns, width): the centre of a square table, as in diffusers."""
        table, width = self.options["pos_embed_max_size"], self.options["caption_projection_dim"]
        grid = [torch.arange(side) + (table - side) // 2 for side in (rows, columns)]  # a larger grid continues it
        return _sines(grid[0], grid[1], width, self.step)

    def weights(self) -> dict[str, Tensor]:
        """The state dict of a `SD3Transformer2DModel` that gives the same outputs."""
        size, width = self.options["pos_embed_max_size"], self.options["caption_projection_dim"]
        last = f"transformer_blocks.{self.options['num_layers'] - 1}.attn"
        unread = {f"{last}.add_q_proj.weight": torch.zeros(width, width), f"{last}.add_q_proj.bias": torch.zeros(width)}
        if self.options["qk_norm"]:
            unread[f"{last}.norm_added_q.weight"] = torch.ones(self.options["attention_head_dim"])
        return {**self.state_dict(), "pos_embed.pos_embed": position_table(size, width, self.step)[None], **unread}


def _sines(rows: Tensor, columns: Tensor, width: int, step: float) -> Tensor:
    """Sines and cosines of the columns, then of the rows, of a grid: (rows columns, width)."""
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    phases = [step * of.reshape(-1, 1) * frequencies for of in (x, y)]
    return torch.cat([part for phase in phases for part in (phase.sin(), phase.cos())], 1).float()


def position_table(size: int, width: int, step: float) -> Tensor:
    """The table of positions (size size, width) of diffusers, with patches that are `step` apart."""
    return _sines(torch.arange(size), torch.arange(size), width, step)


def _waves(t: Tensor) -> Tensor:
    """Cosines and sines of times t (B,) on the scale of 0..1000, (B, 2 FREQUENCIES)."""
    frequency = torch.exp(-math.log(10_000) * torch.arange(FREQUENCIES, device=t.device) / FREQUENCIES)
    phase = t[:, None].float() * frequency
    return torch.cat([phase.cos(), phase.sin()], 1)


def build(
    ports: NetSpec,
    classes: int,
    *,
    patch: Annotated[int, Field(ge=0)] = 0,
    width: Annotated[int, Field(ge=1, le=8192)] = 192,
    depth: Annotated[int, Field(ge=1, le=256)] = 6,
    heads: Annotated[int, Field(ge=1, le=256)] = 3,
    qk_norm: bool = True,
    table: Annotated[int, Field(ge=0, le=4096)] = 0,
    base: Annotated[int, Field(ge=0, le=4096)] = 0,
    normalize: bool = True,
) -> nn.Module:
    """Build the net of Stable Diffusion 3 with the weights of diffusers, for data with captions.

    Use it for runs that are exported to diffusers, and `mmdit` for others.

    Args:
        ports: input and output shapes; both are pictures of the same size.
        classes: the number of classes; ignored.
        patch: side of a patch in pixels; 0: the smallest divisor of the side, at least 2, that gives at most 8 x 8
            patches.
        width: channels of a token; a multiple of 4.
        depth: the number of blocks.
        heads: attention heads; must divide width.
        qk_norm: whether queries and keys are divided by their root mean square, as in Stable Diffusion 3.5.
        table: side of the table of positions, in patches; diffusers draws no larger pictures. 0: about twice the side
            of the data.
        base: patches on which the table is laid, so that its positions are base/table apart; 0: they are 1 apart.
            Stable Diffusion 3 has 64, and a table of 192.
        normalize: whether tokens and pooled vectors are scaled to a root mean square of 1; Stable Diffusion 3 reads
            them as its text encoders give them.

    Raises:
        UsageError: input or output is not a picture, the data has no captions, width is no multiple of 4, patch does
            not divide the picture's side, heads does not divide width, or the table is smaller than the picture.
    """
    size = need_pictures("sd3", ports)
    if width % 4:
        raise UsageError(f"net.width={width} must be a multiple of 4 for sd3", f"use net.width={width + -width % 4}")
    if ports.text is None:
        raise UsageError(
            "net sd3 reads captions, and this run has none",
            "add --text minilm if the data has captions, or use net.kind=mmdit or unet",
        )
    patch, side = need_patch(size, patch), max(ports.inputs[1:])
    patches = side // patch
    if table and table < patches:
        raise UsageError(f"net.table={table} is smaller than the {patches} patches of the data's side",
                         f"use net.table={2 * patches}")  # fmt: skip
    table = table or 2 * patches + patches % 2
    return SD3(ports, patch, width, depth, need_heads(width, heads), qk_norm=qk_norm, table=table, base=base or table,
               normalize=normalize)  # fmt: skip


def of_size(size: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Depth d, width 64 d and d heads, as in Stable Diffusion 3 (Esser et al., 2024, section 5.3).

    Its smallest net has 15 layers, and its published one, Medium, has 24. There are at most 16 x 16 patches, as it has
    of the latents of 256 pixels.
    """
    depth = {"s": 6, "m": 12, "l": 18, "xl": 24}[size]
    return {"patch": patch_for(shape[1], 16), "width": 64 * depth, "depth": depth, "heads": depth}
