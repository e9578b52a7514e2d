"""A coupling flow with rational-quadratic splines, for vectors such as points of the plane and small pictures.

    layer:  z_b = T(x_b; f(x_a, label)),   z_a = x_a        f: a residual MLP;  T: maths/splines.py

Every second layer splits the numbers by a new fixed permutation. The layer after it swaps the roles of the two halves.

References:
    Neural Spline Flows (Durkan et al., 2019)                      https://arxiv.org/abs/1906.04032
    Density estimation using Real NVP (Dinh et al., 2017)          https://arxiv.org/abs/1605.08803
"""

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.errors import UsageError
from genflow.maths import splines
from genflow.nets.layers import Condition, zero_init
from genflow.specs import NetSpec, TextSpec
from genflow.text import Label

FLOW = True  # read by `genflow.nets`: the net is invertible and returns (z, log|det|)
READS_TEXT = True  # captions can stand in the place of labels

# A Muon step changes the weights of `leave` by lr whatever the gradient, and so its outputs by
# lr sqrt(width) OUTPUT_SCALE. Narrow modes need steps well below their own width. On ring8 (sigma 0.014, 10 CPU
# seconds) the negative log-likelihood reaches -4.82 nats with 0.1 and -3.1 with 1; the true value is -4.98.
OUTPUT_SCALE = 0.1


class Coupling(nn.Module):
    """A coupling layer: one half is unchanged and determines the map of each number in the other half.

    Args:
        stays: indices of the unchanged half.
        moves: indices of the half that is mapped.
        condition: the embedding of class or caption, (B, width).
        width: units of the hidden layers.
        depth: the number of residual layers.
        bins: of the splines; 0: only affine maps.
    """

    stays: Tensor
    moves: Tensor

    def __init__(
        self, stays: Tensor, moves: Tensor, condition: Condition, width: int, depth: int, bins: int
    ) -> None:
        super().__init__()
        self.register_buffer("stays", stays, persistent=False)
        self.register_buffer("moves", moves, persistent=False)
        self.bins = bins
        self.condition = condition
        self.enter = nn.Linear(max(1, len(stays)), width)
        self.ups = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.downs = nn.ModuleList(zero_init(nn.Linear(width, width)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = zero_init(nn.Linear(width, len(moves) * splines.parameter_count(bins)))

    def forward(
        self, x: Tensor, label: Label | None, *, inverse: bool = False, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """x (B, D) -> z (B, D) and log |det dz/dx| (B,); with `inverse` from z to x."""
        h = self.enter(x[:, self.stays]) + self.condition(None, label, x)
        for up, down in zip(self.ups, self.downs, strict=True):
            h = h + down(F.silu(up(F.silu(h))))
        with torch.autocast(h.device.type, enabled=False):  # parameters in single precision or better
            h = self.leave(OUTPUT_SCALE * self.norm(h.to(self.norm.weight.dtype)))
        params = h.unflatten(1, (-1, splines.parameter_count(self.bins)))
        if guidance != 1:
            with_label, without = params.chunk(2)
            params = torch.lerp(without, with_label, guidance).repeat(2, 1, 1)
        moved, slopes = splines.transform(x[:, self.moves], params, self.bins, inverse=inverse)
        return x.index_copy(1, self.moves, moved), slopes.sum(1)


class SplineFlow(nn.Module):
    """The coupling flow; see `build`."""

    def __init__(
        self, dims: int, classes: int, text: TextSpec | None, layers: int, width: int, depth: int, bins: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        couplings = []
        for i in range(layers):
            if i % 2 == 0:
                order = torch.randperm(dims, generator=generator)
                stays, moves = order[: dims // 2], order[dims // 2 :]
            else:
                stays, moves = moves, stays
            condition = Condition(width, classes, time=False, text=text)
            couplings.append(Coupling(stays, moves, condition, width, depth, bins))
        self.couplings = nn.ModuleList(couplings)

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
        flat, log_det = x.flatten(1), x.new_zeros(x.shape[:1])
        couplings = list(self.couplings)
        for coupling in reversed(couplings) if inverse else couplings:
            flat, change = coupling(flat, label, inverse=inverse, guidance=guidance)
            log_det = log_det + change
        return flat.view_as(x), log_det


def build(
    ports: NetSpec,
    classes: int,
    *,
    width: Annotated[int, Field(ge=1, le=8192)] = 128,
    layers: Annotated[int, Field(ge=2, le=256)] = 6,
    depth: Annotated[int, Field(ge=1, le=64)] = 1,
    bins: Annotated[int, Field(ge=0, le=128)] = 16,
) -> nn.Module:
    """Build a coupling flow with splines.

    Args:
        ports: input and output shapes, which are equal.
        classes: the number of classes; 0: unconditional.
        width: units of the hidden layers.
        layers: coupling layers; each maps one half of the numbers.
        depth: residual layers per coupling layer.
        bins: bins of the splines; 0: only affine maps (Real NVP).

    Raises:
        UsageError: the input is a single number, which cannot be split.
    """
    dims = math.prod(ports.inputs)
    if dims < 2:
        message = f"net spline needs at least two numbers per sample; the shape {ports.inputs} has one"
        raise UsageError(message, "use net.kind=tarflow")
    return SplineFlow(dims, classes, ports.text, layers, width, depth, bins)


def of_size(size: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """s has the 10 steps, 256 units and 2 blocks of the largest nets of Durkan et al. (2019); the others are multiples.
    """
    width, layers, depth = {"s": (256, 10, 2), "m": (512, 10, 2), "l": (1024, 16, 2), "xl": (1024, 32, 2)}[size]
    return {"width": width, "layers": layers, "depth": depth}
