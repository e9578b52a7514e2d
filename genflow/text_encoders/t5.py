"""The encoder of T5, in plain PyTorch, with transformers' names of its weights.

    token embeddings; per block: norm, attention with a bias by distance, add -> norm, feed-forward, add; a final norm

The tokens are the last hidden states; the pooled vector is their mean.

References:
    T5 (Raffel et al., 2019) https://arxiv.org/abs/1910.10683
    The gated feed-forward of T5 1.1 (Shazeer, 2020) https://arxiv.org/abs/2002.05202
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.text_encoders.base import (
    NetConfig,
    TextNet,
    activation,
    embedding,
    join_heads,
    mean_of_tokens,
    parse_config,
    split_heads,
)

MODEL_TYPES = ("t5", "mt5")


class Config(NetConfig):
    """See `NetConfig`."""

    vocab_size: int = Field(32128, ge=1)
    d_model: int = Field(512, ge=1)
    d_kv: int = Field(64, ge=1)
    d_ff: int = Field(2048, ge=1)
    num_layers: int = Field(6, ge=1)
    num_heads: int = Field(8, ge=1)
    relative_attention_num_buckets: int = Field(32, ge=4)
    relative_attention_max_distance: int = Field(128, ge=1)
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"


class Block(nn.Module):
    """Attention and a feed-forward net, each of the normalized input, added to the input."""

    def __init__(self, config: Config, first: bool) -> None:
        super().__init__()
        D, inner, eps = config.d_model, config.num_heads * config.d_kv, config.layer_norm_epsilon
        gate, _, name = config.feed_forward_proj.rpartition("-")
        self.heads, self.gated = config.num_heads, gate == "gated"
        self.act = activation("gelu_new" if config.feed_forward_proj == "gated-gelu" else name)
        attention: dict[str, nn.Module] = {name: nn.Linear(D, inner, bias=False) for name in ("q", "k", "v")}
        attention["o"] = nn.Linear(inner, D, bias=False)
        if first:  # all blocks use the bias of the first one
            attention["relative_attention_bias"] = embedding(config.relative_attention_num_buckets, self.heads)
        names = ("wi_0", "wi_1") if self.gated else ("wi",)
        forward: dict[str, nn.Module] = {name: nn.Linear(D, config.d_ff, bias=False) for name in names}
        forward["wo"] = nn.Linear(config.d_ff, D, bias=False)
        self.layer = nn.ModuleList([
            nn.ModuleDict({"SelfAttention": nn.ModuleDict(attention), "layer_norm": nn.RMSNorm(D, eps)}),
            nn.ModuleDict({"DenseReluDense": nn.ModuleDict(forward), "layer_norm": nn.RMSNorm(D, eps)}),
        ])  # fmt: skip

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        layers: Any = self.layer
        attention, h = layers[0]["SelfAttention"], layers[0]["layer_norm"](x)
        q, k, v = (split_heads(attention[name](h), self.heads) for name in ("q", "k", "v"))
        x = x + attention["o"](join_heads(F.scaled_dot_product_attention(q, k, v, bias, scale=1.0)))
        forward, h = layers[1]["DenseReluDense"], layers[1]["layer_norm"](x)
        inner = self.act(forward["wi_0"](h)) * forward["wi_1"](h) if self.gated else self.act(forward["wi"](h))
        return x + forward["wo"](inner)


class T5Encoder(TextNet):
    """The net; see the module."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        D = self.tokens = self.pooled = config.d_model
        self.positions = 0  # the bias depends on distances, of any size
        self.distance = config.relative_attention_max_distance
        self.embed_tokens = embedding(config.vocab_size, D)
        self.block = nn.ModuleList(Block(config, number == 0) for number in range(config.num_layers))
        self.final_layer_norm = nn.RMSNorm(D, config.layer_norm_epsilon)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        first: Any = self.block[0]
        bias = self._bias(first.layer[0]["SelfAttention"]["relative_attention_bias"].weight, ids.shape[1])
        bias = bias.masked_fill(~mask[:, None, None], -math.inf)
        x = self.embed_tokens(ids)
        for block in self.block:
            x = block(x, bias)
        x = self.final_layer_norm(x)
        return x, mean_of_tokens(x, mask)

    def _bias(self, weight: Tensor, length: int) -> Tensor:
        """The bias (1, heads, L, L) of each query and key, from weight (buckets, heads).

        Half of the buckets are for keys after the query. A quarter holds one distance each, and the next quarter
        holds distances that grow geometrically to `distance`.
        """
        half = len(weight) // 2
        exact = half // 2
        positions = torch.arange(length)
        offset = positions[None] - positions[:, None]
        far = offset.abs()
        growing = (far.clamp(min=1).float() / exact).log() / math.log(self.distance / exact) * (half - exact)
        bucket = torch.where(far < exact, far, (exact + growing.long()).clamp(max=half - 1))
        return weight[bucket + half * (offset > 0)].permute(2, 0, 1)[None]


def build(config: Mapping[str, Any], tensors: Collection[str]) -> tuple[TextNet, NetConfig]:
    """The net of a config.json, and the keys that decide it. `tensors` are the names in the weights.

    Raises:
        DataError: a value is invalid or not supported.
    """
    known = parse_config(Config, config)
    return T5Encoder(known), known


def own_name(stored: str) -> str:
    """The name of a tensor in the net, from that in a file."""
    return "embed_tokens.weight" if stored == "shared.weight" else stored.removeprefix("encoder.")
