"""The text half of CLIP, in plain PyTorch, with transformers' names of its weights.

    token + position embeddings; per layer: norm, causal attention, add -> norm, two linears, add; a final norm

As in Stable Diffusion 3, the tokens are the hidden states before the last layer (`hidden_states[-2]` of transformers),
and the pooled vector is the projected `text_embeds`, or `pooler_output` in a folder without projection.

References:
    CLIP (Radford et al., 2021) https://arxiv.org/abs/2103.00020
    Stable Diffusion 3 (Esser et al., 2024) https://arxiv.org/abs/2403.03206
"""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

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
    parse_config,
    require_heads,
    split_heads,
)

MODEL_TYPES = ("clip_text_model", "clip")
PROJECTION = "text_projection"


class Config(NetConfig):
    """See `NetConfig`."""

    vocab_size: int = Field(49408, ge=1)
    hidden_size: int = Field(512, ge=1)
    intermediate_size: int = Field(2048, ge=1)
    projection_dim: int = Field(512, ge=1)
    num_hidden_layers: int = Field(12, ge=1)
    num_attention_heads: int = Field(8, ge=1)
    max_position_embeddings: int = Field(77, ge=2)
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projects: bool = False  # whether the weights contain a projection; not a key of config.json


class Sizes(Protocol):
    """The sizes of a layer, in the words of config.json."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def layer_norm_eps(self) -> float: ...


class Layer(nn.Module):
    """Attention and two linear layers, each of the normalized input, added to the input.

    Args:
        config: the sizes.
        causal: whether a token attends to earlier tokens only; those of pictures attend to all.
    """

    def __init__(self, config: Sizes, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        D, eps = config.hidden_size, config.layer_norm_eps
        self.heads, self.act = config.num_attention_heads, activation(config.hidden_act)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(D, D) for name in names})
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(D, eps), nn.LayerNorm(D, eps)
        hidden = config.intermediate_size
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(D, hidden), "fc2": nn.Linear(hidden, D)})

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer_norm1(x)
        q, k, v = (split_heads(self.self_attn[name](h), self.heads) for name in ("q_proj", "k_proj", "v_proj"))
        h = join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))
        x = x + self.self_attn["out_proj"](h)
        return x + self.mlp["fc2"](self.act(self.mlp["fc1"](self.layer_norm2(x))))


class ClipText(TextNet):
    """The net; see the module."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        D = self.tokens = config.hidden_size
        self.pooled = config.projection_dim if config.projects else D
        self.positions = config.max_position_embeddings
        self.embeddings = nn.ModuleDict({
            "token_embedding": embedding(config.vocab_size, D),
            "position_embedding": embedding(config.max_position_embeddings, D),
        })  # fmt: skip
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})
        self.final_layer_norm = nn.LayerNorm(D, config.layer_norm_eps)
        self.text_projection = nn.Linear(D, config.projection_dim, bias=False) if config.projects else None

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        parts: Any = self.embeddings
        x = tokens = parts["token_embedding"](ids) + parts["position_embedding"].weight[: ids.shape[1]]
        layers: Any = self.encoder["layers"]
        for layer in layers:  # causal: padding, which comes last, changes no real token
            tokens = x
            x = layer(x)
        last = self.final_layer_norm(x[torch.arange(len(x)), mask.sum(1) - 1])
        return tokens, last if self.text_projection is None else self.text_projection(last)


def build(config: Mapping[str, Any], tensors: Collection[str]) -> tuple[TextNet, NetConfig]:
    """The net of a config.json, and the keys that decide it. `tensors` are the names in the weights.

    Raises:
        DataError: a value is invalid or not supported.
    """
    text = half(config, "text") if config["model_type"] == "clip" else config  # both halves in one folder
    known = parse_config(Config, {**text, "projects": f"{PROJECTION}.weight" in tensors})
    require_heads(known.hidden_size, known.num_attention_heads)
    return ClipText(known), known


def half(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The keys of one half of a whole CLIP model: text or vision."""
    found = {**(config.get(f"{part}_config_dict") or {}), **(config.get(f"{part}_config") or {})}
    return found | ({"projection_dim": config["projection_dim"]} if "projection_dim" in config else {})


def own_name(stored: str) -> str:
    """The name of a tensor in the net, from that in a file."""
    return stored.removeprefix("text_model.")
