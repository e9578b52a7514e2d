"""Read the `config.json` of an `AutoencoderKL` of diffusers: its net, and how pipelines scale its latents.

Pipelines of diffusers do not use the encoder's mean z as it is: they use (z - shift_factor) * scaling_factor (Stable
Diffusion 3), or (z - latents_mean) * scaling_factor / latents_std (SDXL). `read_config` knows both conventions.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from genflow.errors import DataError, UsageError, plain, similar
from genflow.families.autoencoder import FACTORS

CLASS, CONFIG = "AutoencoderKL", "config.json"
DEFAULT_SCALE = 0.18215  # of a config without the key, as in diffusers

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
JsonTuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
C = TypeVar("C", bound=BaseModel)


class Config(BaseModel):
    """The keys of `config.json` that change a result, with the defaults of diffusers; it rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    in_channels: Count = 3
    out_channels: Count = 3
    latent_channels: Count = 4
    block_out_channels: Annotated[tuple[Count, ...], JsonTuple] = (64,)
    down_block_types: Annotated[tuple[Literal["DownEncoderBlock2D"], ...], JsonTuple] = ("DownEncoderBlock2D",)
    up_block_types: Annotated[tuple[Literal["UpDecoderBlock2D"], ...], JsonTuple] = ("UpDecoderBlock2D",)
    layers_per_block: Count = 1
    norm_num_groups: Count = 32
    act_fn: Literal["silu", "swish"] = "silu"  # two names of one function
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: Positive | None = DEFAULT_SCALE
    shift_factor: float | None = None
    latents_mean: Annotated[tuple[float, ...] | None, JsonTuple] = None
    latents_std: Annotated[tuple[Positive, ...] | None, JsonTuple] = None


NET_KEYS = ("block_out_channels", "layers_per_block", "norm_num_groups", "mid_block_add_attention", "use_quant_conv",
            "use_post_quant_conv")  # fmt: skip
WITHOUT_EFFECT = ("sample_size", "force_upcast")  # of tiles, and of half precision, which genflow does not use


@dataclass(frozen=True)
class Scale:
    """How the pipelines of diffusers scale latents: (z - mean) / deviation.

    Args:
        mean, deviation: one number for each channel.
        known: whether the folder states them; if not, they are 0 and 1, and `Autoencoder.finish` can measure them.
        note: one line about a value that the folder does not state; empty if it states all.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    known: bool = True
    note: str = ""


def home_of(folder: Path) -> Path:
    """The folder itself, or `vae/` in the folder of a pipeline.

    Raises:
        UsageError: there is no such folder, or it has no config.json.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder on this machine", "name a local folder of an AutoencoderKL")
    for home in (folder, folder / "vae"):
        if (home / CONFIG).is_file():
            return home
    raise UsageError(f"{folder} has no {CONFIG}, and no vae/{CONFIG}",
                     f"name a folder that {CLASS}.save_pretrained of diffusers wrote")  # fmt: skip


def read_config(home: Path) -> tuple[Config, Scale]:
    """The configuration of a folder, and the scale of its latents.

    Raises:
        DataError: the file is damaged, of another class, or has a key or a value that genflow does not know.
    """
    where = home / CONFIG
    config, document = read_model(where, CLASS, Config, "another autoencoder", WITHOUT_EFFECT)
    levels = len(config.block_out_channels)
    for key in ("down_block_types", "up_block_types"):
        if (blocks := len(getattr(config, key))) != levels:
            raise DataError(f"{where}: {key} has {blocks} blocks, and block_out_channels has {levels} levels",
                            "choose another autoencoder")  # fmt: skip
    if 2 ** (levels - 1) not in FACTORS:
        raise DataError(f"{where}: block_out_channels has {levels} levels, which divide sides by {2 ** (levels - 1)}; "
                        f"genflow knows {', '.join(map(str, FACTORS))}", "choose another autoencoder")  # fmt: skip
    if config.in_channels != config.out_channels:
        raise DataError(f"{where}: in_channels is {config.in_channels} and out_channels is {config.out_channels}; "
                        "an autoencoder has as many of both", "choose another autoencoder")  # fmt: skip
    return config, _scale(where, config, "scaling_factor" in document)


def read_model(
    where: Path, name: str, model: type[C], other: str, ignored: Collection[str] = ()
) -> tuple[C, dict[str, Any]]:
    """A `config.json` of diffusers, and the document that it holds.

    Args:
        where: the file.
        name: the class that it must name.
        model: its keys.
        other: what to choose in the place of a file that genflow cannot read, for the hint.
        ignored: keys without an effect.

    Raises:
        DataError: the file is damaged, of another class, or has a key or a value that genflow does not know.
    """
    try:
        document = json.loads(where.read_bytes())
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}", f"ls -l {where}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}", "copy the folder again") from error
    theirs = document.get("_class_name") if isinstance(document, dict) else None
    if theirs != name:
        what = f"is of the class {theirs}" if theirs else "names no _class_name"
        raise DataError(f"{where} {what}, and genflow reads {name} alone", f"name a folder of an {name}")
    own = {key: value for key, value in document.items() if not key.startswith("_") and key not in ignored}
    try:
        return model.model_validate(own), document
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            problem = f"unknown key {key}{similar(key, list(model.model_fields))}"
        else:
            problem = f"{key} is {json.dumps(first['input'])}: {plain(first['msg'])}"
        raise DataError(f"{where}: {problem}", f"choose {other}") from error


def _scale(where: Path, config: Config, stated: bool) -> Scale:
    """Both conventions of diffusers: a scale and a shift of all channels, and a mean and a deviation of each."""
    channels, factor = config.latent_channels, config.scaling_factor
    for key in ("latents_mean", "latents_std"):
        if (values := getattr(config, key)) is not None and len(values) != channels:
            raise DataError(f"{where}: {key} has {len(values)} numbers, and latents have {channels} channels",
                            f"correct {key}, or set it to null")  # fmt: skip
    if (config.latents_mean is None) != (config.latents_std is None):
        raise DataError(f"{where}: of latents_mean and latents_std only one is set", "set both, or set both to null")
    if factor is None and config.latents_mean is None:
        note = f"{where}: scaling_factor is null, so mean and deviation of the latents are measured"
        return Scale((0.0,) * channels, (1.0,) * channels, False, note)
    note = "" if stated else f"{where} has no scaling_factor: {DEFAULT_SCALE} is used, as in diffusers"
    scale = factor or 1.0
    if config.latents_mean is None or config.latents_std is None:
        return Scale((config.shift_factor or 0.0,) * channels, (1 / scale,) * channels, note=note)
    if config.shift_factor:
        raise DataError(f"{where}: both shift_factor and latents_mean are set", "set shift_factor to null")
    return Scale(config.latents_mean, tuple(deviation / scale for deviation in config.latents_std), note=note)
