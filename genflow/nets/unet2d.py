"""diffusers' `UNet2DModel`, so that a run can be exported to a folder that stock diffusers pipelines can load.

The embedding of the class, and of a second time, is added to the time embedding. A stock pipeline passes neither:
`unconditional` returns the `UNet2DModel` for "no label", with that embedding added to the last bias of the time
embedding.

diffusers is an optional dependency: `pip install 'genflow-ray[diffusers]'`.
"""

from functools import cache
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.errors import UsageError
from genflow.nets.convolutions import Enlarge, Pointwise
from genflow.nets.layers import Condition, attend, groups, need_pictures
from genflow.specs import NetSpec
from genflow.text import Label


class UNet2D(nn.Module):
    """A `UNet2DModel` with an embedding of class and second time; see `build`."""

    def __init__(self, model: nn.Module, options: dict[str, Any], ports: NetSpec, classes: int) -> None:
        super().__init__()
        self.model, self._options = model, options
        self.condition = Condition(4 * options["block_out_channels"][0], classes, False, ports.second_time)
        self.classes = classes

    def forward(
        self, x: Tensor, t: Tensor | None = None, label: Label | None = None, r: Tensor | None = None
    ) -> Tensor:
        time = x.new_zeros(x.shape[0]) if t is None else t
        class_embedding = self.condition(t, label, x, r)  # (B, 4 width)
        return self.model(x, time, class_labels=class_embedding).sample

    def unconditional(self) -> nn.Module:
        """A `UNet2DModel` that gives the same outputs as this net for "no label", in eval mode."""
        from diffusers import UNet2DModel

        plain: Any = UNet2DModel(**{**self._options, "class_embed_type": None})
        plain.load_state_dict(self.model.state_dict())
        if self.condition.label is not None:
            with torch.no_grad():
                plain.time_embedding.linear_2.bias += self.condition.label.weight[self.classes]
        return plain.eval()


def build(
    ports: NetSpec,
    classes: int,
    *,
    width: Annotated[int, Field(ge=1, le=1024)] = 32,
    multipliers: tuple[Annotated[int, Field(ge=1, le=16)], ...] = (),
    blocks: Annotated[int, Field(ge=1, le=16)] = 1,
    attention: bool = True,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Build diffusers' U-Net for pictures.

    It does not fold pixels. From 16 pixels on it costs about four times as much as `unet`.

    Args:
        ports: input and output shapes; both are pictures of the same size.
        classes: the number of classes; 0: unconditional.
        width: channels at the highest resolution; even.
        multipliers: channels of each level as multiples of width; empty: levels down to at most 8 pixels a side, as
            long as the side is even.
        blocks: residual blocks per level.
        attention: whether the lowest resolution has attention.
        dropout: dropout rate in every block.

    Raises:
        UsageError: diffusers is not installed, width is odd, input or output is not a picture, or its side cannot be
            halved once per level.
    """
    size = need_pictures("unet2d", ports)
    if width % 2:
        raise UsageError(f"net.width={width} must be even for unet2d", f"use net.width={width + 1}")
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise UsageError("net unet2d needs diffusers", "pip install 'genflow-ray[diffusers]'") from error
    if not multipliers:
        levels, side = 1, size
        while side % 2 == 0 and side > 8:
            levels, side = levels + 1, side // 2
        multipliers = tuple(min(2**level, 4) for level in range(levels))
    if size % 2 ** (len(multipliers) - 1):
        halved = len(multipliers) - 1
        raise UsageError(f"a side of {size} pixels cannot be halved {halved} times for unet2d", "use net.kind=unet")
    channels = tuple(width * m for m in multipliers)
    options: dict[str, Any] = {
        "sample_size": size, "in_channels": ports.inputs[0], "out_channels": ports.outputs[0],
        "block_out_channels": channels, "layers_per_block": blocks, "dropout": dropout,
        "down_block_types": ("DownBlock2D",) * len(channels), "up_block_types": ("UpBlock2D",) * len(channels),
        "norm_num_groups": groups(width), "attention_head_dim": groups(channels[-1]), "add_attention": attention,
        "class_embed_type": "identity",
    }  # fmt: skip
    model: Any = UNet2DModel(**options)
    for module in model.modules():
        module.__class__ = _quick_layers().get(type(module), type(module))
        if hasattr(module, "set_processor"):
            module.set_processor(_Attention())
        if getattr(module, "conv_shortcut", None) is not None:
            module.conv_shortcut.__class__ = Pointwise
        if hasattr(module, "use_conv_transpose"):
            module.conv.__class__ = Enlarge
    return UNet2D(model, options, ports, classes)


@cache
def _quick_layers() -> dict[type[nn.Module], type[nn.Module]]:
    """For classes of diffusers' layers, subclasses with the same parameters and results as `build` uses these layers.

    A training step on a CPU takes three quarters of the time.
    """
    from diffusers import UNet2DModel
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    class Block(ResnetBlock2D):
        """A residual block without the division by 1 that ends diffusers' own."""

        def forward(self, x: Tensor, temb: Tensor, *_: Any) -> Tensor:
            h = self.conv1(F.silu(self.norm1(x)))
            h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
            h = self.conv2(self.dropout(F.silu(self.norm2(h))))
            return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    class Upsample(Upsample2D):
        """An enlargement and its convolution as one operation."""

        def forward(self, hidden_states: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
            layer: Any = self.conv
            enlarged: Tensor = layer(hidden_states, output_size)
            return enlarged

    class Model(UNet2DModel):
        """A net that does not search all modules for its number format at each evaluation."""

        @property
        def dtype(self) -> torch.dtype:
            net: Any = self
            found: torch.dtype = net.conv_in.weight.dtype
            return found

    return {ResnetBlock2D: Block, Upsample2D: Upsample, UNet2DModel: Model}


class _Attention:
    """diffusers' attention processor for residual self-attention over all pixels, by `attend`."""

    def __call__(self, attn: Any, x: Tensor, temb: Tensor | None = None, **_: Any) -> Tensor:
        B, C, H, W = x.shape
        tokens = attn.group_norm(x.flatten(2)).mT
        q, k, v = (
            to(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2) for to in (attn.to_q, attn.to_k, attn.to_v)
        )  # (B, heads, N, D)
        mixed = attn.to_out[0](attend(q, k, v).transpose(1, 2).flatten(2))
        return x + mixed.mT.reshape(B, C, H, W)


def of_size(size: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Channels and blocks of EDM2's XXS, XS, S and M (Karras et al., 2024, table 2; XXS is of its code).

    Levels and their multipliers stay those of the side.
    """
    return {"width": {"s": 64, "m": 128, "l": 192, "xl": 256}[size], "blocks": 3}
