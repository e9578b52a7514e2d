"""The encoder and the decoder of diffusers' `AutoencoderKL`, in plain PyTorch, with the names of its weights.

    encoder  (C, H, W) -> conv, per level: residual blocks, halve -> residual, attention, residual -> conv, quant_conv
    decoder  post_quant_conv, conv -> residual, attention, residual -> per level: residual blocks, double -> (C, H, W)

The union of the two state dicts is that of an `AutoencoderKL`, so its weights load strictly, and those of a run can be
exported to a folder that stock diffusers loads. See `genflow.sampling.diffusers_folder`.

Reference: High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)
https://arxiv.org/abs/2112.10752
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.errors import UsageError
from genflow.nets.convolutions import Pointwise
from genflow.nets.layers import attend
from genflow.specs import NetSpec
from genflow.text import Label

EPS = 1e-6  # of every norm, as in diffusers


class Resnet(nn.Module):
    """A residual block: norm, SiLU, conv, norm, SiLU, conv; a 1 x 1 conv as shortcut if the channels change."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = Pointwise(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Attention of one head over all positions, with a residual connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list in diffusers, with a dropout

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).mT[:, None]  # (B, 1, H W, C)
        h = attend(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out[0](h)[:, 0].mT.unflatten(2, x.shape[2:])


class MidBlock(nn.Module):
    """A residual block, attention if there is any, and a residual block, at the lowest resolution."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample(nn.Module):
    """Halve the side: a conv of stride 2, with zeros added at the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side: repeat every position, then a conv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """diffusers' `DownEncoderBlock2D`: the residual blocks of a level, which is halved unless it is the last one."""

    def __init__(self, inputs: int, outputs: int, groups: int, blocks: int, *, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(outputs if i else inputs, outputs, groups) for i in range(blocks))
        self.downsamplers = nn.ModuleList([] if last else [Downsample(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """diffusers' `UpDecoderBlock2D`: the residual blocks of a level, which is doubled unless it is the last one."""

    def __init__(self, inputs: int, outputs: int, groups: int, blocks: int, *, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(outputs if i else inputs, outputs, groups) for i in range(blocks))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """diffusers' `Encoder`: (B, inputs, H, W) -> (B, outputs, H/f, W/f), f = 2**(levels - 1)."""

    def __init__(
        self, inputs: int, outputs: int, channels: Sequence[int], blocks: int, groups: int, attention: bool
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(before, own, groups, blocks, last=level == len(channels) - 1)
            for level, (before, own) in enumerate(zip((channels[0], *channels), channels, strict=False))
        )
        self.mid_block = MidBlock(channels[-1], groups, attention)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    """diffusers' `Decoder`: (B, inputs, H/f, W/f) -> (B, outputs, H, W), with one residual block more per level."""

    def __init__(
        self, inputs: int, outputs: int, channels: Sequence[int], blocks: int, groups: int, attention: bool
    ) -> None:
        super().__init__()
        upwards = tuple(reversed(channels))
        self.conv_in = nn.Conv2d(inputs, upwards[0], 3, padding=1)
        self.mid_block = MidBlock(upwards[0], groups, attention)
        self.up_blocks = nn.ModuleList(
            UpBlock(before, own, groups, blocks + 1, last=level == len(channels) - 1)
            for level, (before, own) in enumerate(zip((upwards[0], *upwards), upwards, strict=False))
        )
        self.conv_norm_out = nn.GroupNorm(groups, upwards[-1], EPS)
        self.conv_out = nn.Conv2d(upwards[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class EncoderNet(nn.Module):
    """The half of an `AutoencoderKL` that makes latents: `encoder` and `quant_conv`; see `build`.

    Attributes:
        options: the keys of `config.json` that describe both halves, without those of the 1 x 1 convs.
    """

    def __init__(self, encoder: Encoder, quant_conv: nn.Conv2d | None, options: dict[str, Any]) -> None:
        super().__init__()
        self.encoder, self.quant_conv, self.options = encoder, quant_conv, options

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        h = self.encoder(x)
        return h if self.quant_conv is None else self.quant_conv(h)


class DecoderNet(nn.Module):
    """The half of an `AutoencoderKL` that makes pictures: `post_quant_conv` and `decoder`; see `build`."""

    def __init__(self, decoder: Decoder, post_quant_conv: nn.Conv2d | None) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = decoder, post_quant_conv

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        return self.decoder(x if self.post_quant_conv is None else self.post_quant_conv(x))


def build(
    ports: NetSpec,
    classes: int,
    *,
    block_out_channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = (),
    layers_per_block: Annotated[int, Field(ge=1, le=16)] = 1,
    norm_num_groups: Annotated[int, Field(ge=1, le=1024)] = 32,
    mid_block_add_attention: bool = True,
    use_quant_conv: bool = True,
    use_post_quant_conv: bool = True,
) -> nn.Module:
    """Build the encoder or the decoder of an `AutoencoderKL`; the larger side decides which. Labels are ignored.

    Its options are keys of the `config.json` of such a folder. On a CPU it costs about four times as much as
    `autoencoder` (64 x 64 pixels, factor 8, default options).

    Args:
        ports: input and output shapes: a picture, and its latents.
        classes: the number of classes; ignored.
        block_out_channels: channels of each level, from the picture's resolution to that of the latents; each
            level but the last halves the side. Empty: 32, 64, 128, 128, ..., as many as the sides need.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        norm_num_groups: groups of every group norm; it divides all channels.
        mid_block_add_attention: whether the lowest resolution has attention.
        use_quant_conv: whether a 1 x 1 conv follows the encoder.
        use_post_quant_conv: whether a 1 x 1 conv precedes the decoder.

    Raises:
        UsageError: the ports are not a picture and its latents, the number of levels does not fit their sides, or
            the groups do not divide the channels.
    """
    factor, is_encoder = _factor(ports)
    channels = block_out_channels or (32, 64, 128, *[128] * factor.bit_length())[: factor.bit_length()]
    if 2 ** (len(channels) - 1) != factor:
        raise UsageError(
            f"net.block_out_channels={list(channels)} divides the side by {2 ** (len(channels) - 1)}, not by {factor}",
            f"name {factor.bit_length()} numbers, or use family.factor={2 ** (len(channels) - 1)}",
        )
    if odd := [number for number in channels if number % norm_num_groups]:
        raise UsageError(
            f"net.norm_num_groups={norm_num_groups} does not divide the {odd[0]} of net.block_out_channels",
            f"use net.norm_num_groups={math.gcd(*channels)}",
        )
    inputs, outputs = ports.inputs[0], ports.outputs[0]
    shape = (inputs, outputs, channels, layers_per_block, norm_num_groups, mid_block_add_attention)
    if is_encoder:
        options = {
            "block_out_channels": list(channels), "layers_per_block": layers_per_block,
            "norm_num_groups": norm_num_groups, "mid_block_add_attention": mid_block_add_attention,
        }  # fmt: skip
        return EncoderNet(Encoder(*shape), Pointwise(outputs, outputs, 1) if use_quant_conv else None, options)
    return DecoderNet(Decoder(*shape), Pointwise(inputs, inputs, 1) if use_post_quant_conv else None)


def _factor(ports: NetSpec) -> tuple[int, bool]:
    """The ratio of the sides of picture and latents, a power of 2, and whether the picture is the input.

    Raises:
        UsageError: there is no such ratio.
    """
    if len(ports.inputs) == len(ports.outputs) == 3 and not ports.time:
        is_encoder = ports.inputs[1] > ports.outputs[1]
        large, small = (ports.inputs, ports.outputs) if is_encoder else (ports.outputs, ports.inputs)
        factor = large[1] // small[1]
        if factor > 1 and factor & (factor - 1) == 0 and large[1:] == (factor * small[1], factor * small[2]):
            return factor, is_encoder
    raise UsageError(
        f"net autoencoder_kl turns a picture into latents or back, whose side is smaller by a power of 2; "
        f"here the input is {ports.inputs} and the output {ports.outputs}",
        "use net.kind=unet, dit or mlp",
    )
