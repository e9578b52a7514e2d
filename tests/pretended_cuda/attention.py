"""CUDA's fused attention in plain products. torch's CPU build has its name but not its code.

As on CUDA, its derivative can be taken once and backwards only. A net that differentiates forwards or twice through it
fails here as it would on a GPU.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretended_cuda.device import REPLACED, Cuda, aten

FUSED = aten._scaled_dot_product_efficient_attention.default
_plain = F.scaled_dot_product_attention


def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """CUDA's choice: the fused kernel wherever the head's size allows it."""
    if not q.is_cuda:
        return _plain(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
    if torch.is_autocast_enabled("cuda"):
        q, k, v = (x.to(torch.get_autocast_dtype("cuda")) for x in (q, k, v))
        attn_mask = attn_mask.to(q.dtype) if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
    if len({q.dtype, k.dtype, v.dtype}) > 1:
        raise RuntimeError(f"Expected query, key, and value to have the same dtype: {q.dtype} {k.dtype} {v.dtype}")
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, q.dtype):
        raise RuntimeError(f"Expected attn_mask dtype to be bool or to match query dtype, but got {attn_mask.dtype}")
    if q.shape[-1] % (8 if q.element_size() == 2 else 4):
        return _plain(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape, dtype=q.dtype, device=q.device).masked_fill(~attn_mask, -math.inf)
        attn_mask = attn_mask.expand(*q.shape[:-1], k.shape[-2])
    fused: Tensor = FUSED(q, k, v, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]
    return fused


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, causal: bool, scale: float | None) -> tuple[Tensor, float]:
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q @ k.mT * factor
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
    return scores, factor


def _forward(
    q: Cuda, k: Cuda, v: Cuda, bias: Cuda | None = None, logsumexp: bool = False, dropout: float = 0.0,
    causal: bool = False, *, scale: float | None = None,
) -> tuple[Cuda, ...]:  # fmt: skip
    qh, kh, vh = (x.host.float() for x in (q, k, v))
    scores, _ = _weights(qh, kh, bias.host.float() if bias is not None else None, causal, scale)
    out, nothing = scores.softmax(-1) @ vh, torch.zeros((), dtype=torch.long)
    return Cuda(out.to(q.dtype)), Cuda(scores.logsumexp(-1)), Cuda(nothing), Cuda(nothing.clone())


def _backward(
    grad: Cuda, q: Cuda, k: Cuda, v: Cuda, bias: Cuda | None, out: Cuda, logsumexp: Cuda, seed: Any, offset: Any,
    dropout: float, wanted: Any, causal: bool = False, *, scale: float | None = None,
) -> tuple[Cuda | None, ...]:  # fmt: skip
    g, qh, kh, vh = (x.host.float() for x in (grad, q, k, v))
    scores, factor = _weights(qh, kh, bias.host.float() if bias is not None else None, causal, scale)
    p = scores.softmax(-1)
    dp = g @ vh.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * factor
    return (*(Cuda(x.to(q.dtype).contiguous()) for x in (ds @ kh, ds.mT @ qh, p.mT @ g)), None)


REPLACED[FUSED] = _forward
REPLACED[aten._scaled_dot_product_efficient_attention_backward.default] = _backward
