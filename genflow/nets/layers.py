"""Layers shared by several nets, such as embeddings of time and class, attention, and checks of options."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from genflow.errors import UsageError
from genflow.specs import NetSpec, TextSpec
from genflow.text import Label, Text


class Condition(nn.Module):
    """Embed times and class, or times and caption, as one vector: t (B,), r (B,), label -> (B, width).

    The time embedding has frequencies up to 50 rad over the range 0..1000. With the usual 1000 rad the derivative of
    the net with respect to t is too noisy to use.

    Args:
        width: size of the vector.
        classes: labels are 0..classes-1; `classes` itself means "no label".
        time: whether the net has a time input t.
        second_time: whether the net has a second time input r, embedded as t - r. Its layer starts at zero, so a net
            that was trained without it gives the same outputs at first.
        text: the form of the captions that stand in the place of classes. Their pooled vectors are read, at any scale.
        frequencies: the number of frequencies of the time embedding.
    """

    omega: Tensor

    def __init__(
        self,
        width: int,
        classes: int,
        time: bool,
        second_time: bool = False,
        text: TextSpec | None = None,
        frequencies: int = 32,
    ) -> None:
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
        self.label = nn.Embedding(classes + 1, width) if classes and not text else None
        self.text = nn.Linear(text.pooled, width) if text else None
        self.scale_embedding(0.3)
        self.width = width

    def scale_embedding(self, std: float) -> None:
        """Initialize the embedding of class or caption so that its entries have this standard deviation."""
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=std)
        if self.text is not None:
            nn.init.normal_(self.text.weight, std=std * self.text.in_features**-0.5)
            nn.init.zeros_(self.text.bias)

    def forward(self, t: Tensor | None, label: Label | None, like: Tensor, r: Tensor | None = None) -> Tensor:
        out = like.new_zeros(like.shape[0], self.width)  # not len(): torch.export would make it a constant
        if self.time is not None and t is not None:
            out = out + self.time(self._fourier(t))
        if self.second is not None and t is not None and r is not None:
            out = out + self.second(self._fourier(t - r))
        if self.label is not None and label is not None:
            out = out + self.label(label)
        if self.text is not None:
            assert isinstance(label, Text), "a net that reads captions was called without them"
            out = out + self.text(unit_rows(label.pooled.to(like.dtype)))
        return out

    def _fourier(self, t: Tensor) -> Tensor:
        phase = t[:, None].float() / 1000 * self.omega[None]
        return torch.cat([phase.cos(), phase.sin()], 1)


def unit_rows(x: Tensor) -> Tensor:
    """Scale the last dimension to a root mean square of 1; zeros stay zeros."""
    return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))/2.

    A CPU computes the exact function: it differs by less than 5e-4, and takes less than half the time.
    """
    return F.gelu(x, approximate="none" if x.device.type == "cpu" else "tanh")


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Attention softmax(q k' / sqrt(D) + mask) v, for q, k, v (B, heads, N, D).

    With `causal` a position attends only to itself and to earlier positions. `mask` is broadcast to (B, heads, N, N);
    -inf in it gives the weight 0 exactly.

    CUDA uses the fused kernel, except for forward-mode differentiation, which that kernel lacks. Tensors without data
    stand for those of a GPU. The CPU uses two
    matrix products and a softmax, because the backward pass of the fused kernel is ten times slower there in bfloat16.
    """
    if (q.is_cuda or q.is_meta) and not _has_tangent(q, k, v):
        mask = None if mask is None else mask.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -math.inf, device=q.device, dtype=scores.dtype).triu(1)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return scores.softmax(-1) @ v


def _has_tangent(*tensors: Tensor) -> bool:
    """Whether one of the tensors is differentiated forwards, as `torch.func.jvp` does."""
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def zero_init(module: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Initialize a layer to zero, so that its residual block starts as the identity."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def need_pictures(kind: str, ports: NetSpec) -> int:
    """Check that input and output are pictures of the same size, and return their side in pixels.

    Raises:
        UsageError: input or output is not a picture of at least 4 pixels a side, or their sizes differ.
    """
    if len(ports.inputs) != 3 or ports.inputs[1] < 4 or ports.inputs[1:] != ports.outputs[1:]:
        fits = "autoencoder" if len(ports.inputs) == len(ports.outputs) == 3 and ports.inputs[1] >= 4 else "mlp"
        raise UsageError(
            f"net {kind} turns pictures into pictures; here the input is {ports.inputs} and the output {ports.outputs}",
            f"use net.kind={fits}",
        )
    return ports.inputs[1]


def need_one_picture(kind: str, ports: NetSpec) -> tuple[int, bool]:
    """Check that exactly one of input and output is a picture; return its side in pixels, and whether it is the input.

    Raises:
        UsageError: neither or both are pictures.
    """
    pictures = [p for p in (ports.inputs, ports.outputs) if len(p) == 3 and p[1] >= 4]
    if len(pictures) != 1:
        raise UsageError(
            f"net {kind} turns a picture into a vector or back; "
            f"here the input is {ports.inputs} and the output {ports.outputs}",
            "use net.kind=unet, dit or mlp",
        )
    return pictures[0][1], pictures[0] == ports.inputs


def need_patch(size: int, patch: int) -> int:
    """Check that `patch` divides the side; for 0 return the smallest divisor that gives at most 8 x 8 patches.

    Raises:
        UsageError: `patch` does not divide `size`.
    """
    return need_divisor(size, patch or patch_for(size, 8), "patch")


def patch_for(side: int, most: int) -> int:
    """The smallest divisor of the side, at least 2, that gives at most `most` x `most` patches."""
    return next(p for p in range(2, side + 1) if side % p == 0 and side // p <= most)


def need_heads(width: int, heads: int) -> int:
    """Check that the number of attention heads divides the width, and return it.

    Raises:
        UsageError: `heads` does not divide `width`; the hint proposes a number that does.
    """
    if width % heads:
        fits = next(h for h in range(min(heads, width), 0, -1) if width % h == 0)
        raise UsageError(f"net.heads={heads} does not divide net.width={width}", f"use net.heads={fits}")
    return heads


def need_divisor(size: int, divisor: int, key: str) -> int:
    """Check that `divisor` divides the side of the picture, and return it.

    Raises:
        UsageError: it does not; the message names the recipe key `net.<key>`.
    """
    if size % divisor:
        raise UsageError(
            f"net.{key}={divisor} does not divide the picture's side of {size} pixels",
            f"use a divisor of {size}, or prepare the data with another --size",
        )
    return divisor


def default_fold(size: int, unfolded_below: int = 16) -> int:
    """The default side of folded pixel squares: 1 below `unfolded_below` pixels, 2 up to 64, 4 above.

    It is halved until it divides `size`.
    """
    fold = 1 if size < unfolded_below else 2 if size <= 64 else 4
    while size % fold:
        fold //= 2
    return fold


def groups(channels: int) -> int:
    """The number of groups of a group norm: the largest of 1, 2, 4, 8 that divides the channels."""
    return math.gcd(channels, 8)
