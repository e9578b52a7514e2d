"""diffusers' `UNet2DModel`, so that a run can be exported to a folder that stock diffusers pipelines can load.

The embedding of the class, and of a second time, is added to the time embedding. A stock pipeline passes neither:
`unconditional` returns the `UNet2DModel` for "no label", with that embedding added to the last bias of the time
embedding.

diffusers is an optional dependency: `pip install 'genflow-ray[diffusers]'`.
"""

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from genflow.errors import UsageError
from genflow.nets.layers import Condition, groups, need_pictures
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
        import torch
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
    return UNet2D(model, options, ports, classes)


def of_size(size: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Channels and blocks of EDM2's XXS, XS, S and M (Karras et al., 2024, table 2; XXS is of its code).

    Levels and their multipliers stay those of the side.
    """
    return {"width": {"s": 64, "m": 128, "l": 192, "xl": 256}[size], "blocks": 3}
