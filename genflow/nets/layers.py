"""Layers that several nets are made of: embeddings of time and class, attention."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.errors import UsageError
from genflow.specs import NetSpec


class Condition(nn.Module):
    """Times and class as one vector, (B,) and (B,) -> (B, width).

    The time's frequencies end at 50 rad over the whole clock: with the usual 1000 rad a derivative of the net
    along t is noise.

    Args:
        width: of the vector.
        classes: labels 0..classes-1; `classes` itself means "no label".
        time: whether the net is told the time.
        second_time: whether it is told a second time, as the distance to the first; its part starts at zero, so a
            net that was trained without starts as it was.
    """

    omega: Tensor

    def __init__(self, width: int, classes: int, time: bool, second_time: bool = False, frequencies: int = 32) -> None:
        super().__init__()
        self.register_buffer("omega", torch.logspace(0, math.log10(50), frequencies), persistent=False)
        self.time: nn.Module | None = None
        if time:
            self.time = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.second: nn.Module | None = None
        if second_time:
            self.second = nn.Sequential(
                nn.Linear(2 * frequencies, width), nn.SiLU(), zero_init(nn.Linear(width, width))
            )
        self.label = nn.Embedding(classes + 1, width) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.3)
        self.width = width

    def forward(self, t: Tensor | None, label: Tensor | None, like: Tensor, r: Tensor | None = None) -> Tensor:
        out = like.new_zeros(like.shape[0], self.width)  # not len(): torch.export would fix it
        if self.time is not None and t is not None:
            out = out + self.time(self._fourier(t))
        if self.second is not None and t is not None and r is not None:
            out = out + self.second(self._fourier(t - r))
        if self.label is not None and label is not None:
            out = out + self.label(label)
        return out

    def _fourier(self, t: Tensor) -> Tensor:
        phase = t[:, None].float() / 1000 * self.omega[None]
        return torch.cat([phase.cos(), phase.sin()], 1)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Attention of (B, heads, N, D): softmax(q k' / sqrt(D)) v; causal: to places up to its own alone.

    Two products and a softmax on the CPU, where the backward pass of the fused kernel is ten times slower in
    bfloat16; the fused kernel on CUDA.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -math.inf, device=q.device, dtype=scores.dtype).triu(1)
    return scores.softmax(-1) @ v


def zero_init(module: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """A layer that starts as nothing, so that its block starts as the identity."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def need_pictures(kind: str, ports: NetSpec) -> int:
    """The side of the pictures that go in and come out.

    Raises:
        UsageError: the ports are no pictures.
    """
    if len(ports.inputs) != 3 or len(ports.outputs) != 3 or ports.inputs[1] < 4:
        raise UsageError(
            f"net {kind} turns pictures into pictures; here {ports.inputs} goes in and {ports.outputs} out",
            "use net.kind=mlp",
        )
    return ports.inputs[1]


def need_one_picture(kind: str, ports: NetSpec) -> tuple[int, bool]:
    """The side of the one picture among the ports, and whether it is what goes in; the other end is a vector.

    Raises:
        UsageError: not exactly one of the ports is a picture.
    """
    pictures = [p for p in (ports.inputs, ports.outputs) if len(p) == 3 and p[1] >= 4]
    if len(pictures) != 1:
        raise UsageError(
            f"net {kind} turns a picture into a vector or back; here {ports.inputs} goes in and {ports.outputs} out",
            "use net.kind=unet, dit or mlp",
        )
    return pictures[0][1], pictures[0] == ports.inputs


def need_patch(size: int, patch: int) -> int:
    """`patch`, if it divides the picture's side; 0: the smallest divisor that leaves at most 8 x 8 patches.

    Raises:
        UsageError: it does not divide.
    """
    return need_divisor(size, patch or next(p for p in range(2, size + 1) if size % p == 0 and size // p <= 8), "patch")


def need_heads(width: int, heads: int) -> int:
    """`heads`, if they divide the tokens' width.

    Raises:
        UsageError: they do not.
    """
    if width % heads:
        fits = next(h for h in range(min(heads, width), 0, -1) if width % h == 0)
        raise UsageError(f"net.heads={heads} does not divide net.width={width}", f"use net.heads={fits}")
    return heads


def need_divisor(size: int, divisor: int, key: str) -> int:
    """`divisor`, if it divides the picture's side.

    Raises:
        UsageError: it does not; the message names the recipe's key.
    """
    if size % divisor:
        raise UsageError(
            f"net.{key}={divisor} does not divide the picture's side of {size} pixels",
            f"use a divisor of {size}, or prepare the data with another --size",
        )
    return divisor


def default_fold(size: int, unfolded_below: int = 16) -> int:
    """Pixels to fold into channels along each side: 1 below `unfolded_below`, 2 up to 64, 4 above, and a divisor."""
    fold = 1 if size < unfolded_below else 2 if size <= 64 else 4
    while size % fold:
        fold //= 2
    return fold


def groups(channels: int) -> int:
    """The number of groups for a group norm: at most 8, and a divisor."""
    return math.gcd(channels, 8)
