"""BERT, in plain PyTorch, with transformers' names of its weights.

    embeddings: word + position + token type -> norm; per layer: attention, add, norm -> two linears, add, norm

The tokens are the last hidden states; the pooled vector is their mean.

Reference: BERT (Devlin et al., 2018) https://arxiv.org/abs/1810.04805
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genflow.errors import DataError
from genflow.text_encoders.base import (
    NetConfig,
    TextNet,
    activation,
    embedding,
    join_heads,
    mean_of_tokens,
    parse_config,
    require_heads,
    split_heads,
)

MODEL_TYPES = ("bert",)


class Config(NetConfig):
    """See `NetConfig`."""

    vocab_size: int = Field(30522, ge=1)
    hidden_size: int = Field(768, ge=1)
    num_hidden_layers: int = Field(12, ge=1)
    num_attention_heads: int = Field(12, ge=1)
    intermediate_size: int = Field(3072, ge=1)
    hidden_act: str = "gelu"
    max_position_embeddings: int = Field(512, ge=2)
    type_vocab_size: int = Field(2, ge=1)
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"


class Layer(nn.Module):
    """Attention and two linear layers, each added to its input and normalized."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        D, eps = config.hidden_size, config.layer_norm_eps
        self.heads, self.act = config.num_attention_heads, activation(config.hidden_act)
        projections = nn.ModuleDict({name: nn.Linear(D, D) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": projections, "output": _output(D, D, eps)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(D, config.intermediate_size)})
        self.output = _output(config.intermediate_size, D, eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        projections: Any = self.attention["self"]
        q, k, v = (split_heads(projections[name](x), self.heads) for name in ("query", "key", "value"))
        x = _add(self.attention["output"], join_heads(F.scaled_dot_product_attention(q, k, v, mask)), x)
        return _add(self.output, self.act(self.intermediate["dense"](x)), x)


def _output(inputs: int, outputs: int, eps: float) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(inputs, outputs), "LayerNorm": nn.LayerNorm(outputs, eps)})


def _add(output: Any, h: Tensor, x: Tensor) -> Tensor:
    added: Tensor = output["LayerNorm"](output["dense"](h) + x)
    return added


class Bert(TextNet):
    """The net; see the module."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        D = self.tokens = self.pooled = config.hidden_size
        self.positions = config.max_position_embeddings
        self.embeddings = nn.ModuleDict({
            "word_embeddings": embedding(config.vocab_size, D),
            "position_embeddings": embedding(config.max_position_embeddings, D),
            "token_type_embeddings": embedding(config.type_vocab_size, D),
            "LayerNorm": nn.LayerNorm(D, config.layer_norm_eps),
        })  # fmt: skip
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        parts: Any = self.embeddings
        added = parts["position_embeddings"].weight[: ids.shape[1]] + parts["token_type_embeddings"].weight[0]
        x = parts["LayerNorm"](parts["word_embeddings"](ids) + added)
        layers: Any = self.encoder["layer"]
        for layer in layers:
            x = layer(x, mask[:, None, None])
        return x, mean_of_tokens(x, mask)


def build(config: Mapping[str, Any], tensors: Collection[str]) -> tuple[TextNet, NetConfig]:
    """The net of a config.json, and the keys that decide it. `tensors` are the names in the weights.

    Raises:
        DataError: a value is invalid or not supported.
    """
    known = parse_config(Config, config)
    if known.position_embedding_type != "absolute":
        raise DataError(f"config.json: position_embedding_type={known.position_embedding_type!r} is not supported")
    require_heads(known.hidden_size, known.num_attention_heads)
    return Bert(known), known


def own_name(stored: str) -> str:
    """The name of a tensor in the net, from that in a file; gamma and beta are names of old files."""
    name = stored.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
