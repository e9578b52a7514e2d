"""Read the transformer of a local folder of Stable Diffusion 3 as the net `sd3`. Needs no diffusers.

    transformer/config.json                                   the net
    transformer/diffusion_pytorch_model.safetensors           the weights, or their index and shards; variants

Reference: https://huggingface.co/docs/diffusers/api/models/sd3_transformer2d
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from torch import Tensor

from genflow.errors import DataError, UsageError
from genflow.nets.sd3 import SD3, position_table
from genflow.sampling.diffusers_config import CONFIG, Count, JsonTuple, read_model
from genflow.sampling.diffusers_folder import hashes_of, matching, read_tensors
from genflow.sampling.diffusers_pipelines import NORMALIZED, PROMPTS
from genflow.system.source_hash import digest

CLASS, TRANSFORMER, TABLE = "SD3Transformer2DModel", "transformer", "pos_embed.pos_embed"
CLOSE = 5e-3  # positions that were rounded to half precision


class Config(BaseModel):
    """The keys of `config.json`, with the defaults of diffusers; it rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sample_size: Count = 128
    patch_size: Count = 2
    in_channels: Count = 16
    num_layers: Count = 18
    attention_head_dim: Count = 64
    num_attention_heads: Count = 18
    joint_attention_dim: Count = 4096
    caption_projection_dim: Count = 1152
    pooled_projection_dim: Count = 2048
    out_channels: Count = 16
    pos_embed_max_size: Count = 96
    dual_attention_layers: Annotated[tuple[int, ...], JsonTuple] = ()
    qk_norm: Literal["rms_norm"] | None = None


def is_folder(folder: Path) -> bool:
    """Whether a folder has such a transformer."""
    return (folder / TRANSFORMER / CONFIG).is_file()


def read_config(folder: Path) -> Config:
    """The configuration of a folder.

    Raises:
        UsageError: there is no such folder, or it has no transformer.
        DataError: the file is damaged, of another class, or has a key or a value that genflow does not know.
    """
    where = folder / TRANSFORMER / CONFIG
    if not where.is_file():
        problem = f"has no {TRANSFORMER}/{CONFIG}" if folder.is_dir() else "is no folder on this machine"
        raise UsageError(f"{folder} {problem}", "name a local folder of Stable Diffusion 3")
    other = "another folder of Stable Diffusion 3"
    config, _ = read_model(where, CLASS, Config, other)
    problem, width = "", config.num_attention_heads * config.attention_head_dim
    if config.dual_attention_layers:
        problem = "dual_attention_layers, as Stable Diffusion 3.5 medium has them, are not supported"
    elif config.in_channels != config.out_channels:
        problem = f"in_channels is {config.in_channels} and out_channels is {config.out_channels}"
    elif config.caption_projection_dim != width:
        problem = f"caption_projection_dim is {config.caption_projection_dim}, and the heads have {width} channels"
    if problem:
        raise DataError(f"{where}: {problem}", f"choose {other}")
    return config


def digest_of(folder: Path) -> str:
    """A hash of what decides the net's outputs: its configuration, and the bytes of its weights.

    Raises:
        UsageError, DataError: as in `read_config`, or a file is missing.
    """
    config = read_config(folder).model_dump(mode="json")
    return digest([config, is_normalized(folder), hashes_of(folder / TRANSFORMER)])


def is_normalized(folder: Path) -> bool:
    """Whether the net reads text of a root mean square of 1, which only genflow's exports say."""
    if not (folder / PROMPTS).is_file():
        return False
    with safe_open(folder / PROMPTS, "pt") as file:
        return (file.metadata() or {}).get(NORMALIZED) == "true"


def read_net(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The section `net` of a recipe for this folder, and the state dict of that net.

    Raises:
        UsageError, DataError: as in `read_config`; or a tensor is missing or damaged.
    """
    config, home = read_config(folder), folder / TRANSFORMER
    found = read_tensors(home)
    table = found.pop(TABLE, None)
    size, width = config.pos_embed_max_size, config.num_attention_heads * config.attention_head_dim
    if table is None or table.shape != (1, size**2, width):
        raise DataError(f"{home}: tensor {TABLE} is missing or is not of the shape {(1, size**2, width)}",
                        f"copy the folder again, with the {CONFIG} of these weights")  # fmt: skip
    options = {
        "kind": "sd3", "patch": config.patch_size, "width": width, "depth": config.num_layers,
        "heads": config.num_attention_heads, "qk_norm": config.qk_norm is not None, "table": size,
        "base": _base(home, config, table.float()[0]), "normalize": is_normalized(folder),
    }  # fmt: skip
    unread = f"transformer_blocks.{config.num_layers - 1}.attn."  # the last block's queries of text change no output
    for name in ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight"):
        found.pop(unread + name, None)
    return options, found


def load(folder: Path, net: SD3, tensors: dict[str, Tensor]) -> None:
    """Load what `read_net` returned into the net that its options describe.

    Raises:
        DataError: a tensor is missing, left over, of another shape, or not finite.
    """
    net.load_state_dict(matching(folder / TRANSFORMER, tensors, net.state_dict()))


def _base(home: Path, config: Config, table: Tensor) -> int:
    """The patches on which the table of positions is laid: those of the configuration, or of positions 1 apart.

    Raises:
        DataError: the positions are others.
    """
    for base in (config.sample_size // config.patch_size, config.pos_embed_max_size):
        positions = position_table(config.pos_embed_max_size, table.shape[1], base / config.pos_embed_max_size)
        if torch.allclose(positions, table, atol=CLOSE):
            return base
    raise DataError(f"{home}: the positions in {TABLE} are not those of diffusers", "choose another folder")
