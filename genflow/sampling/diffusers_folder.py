"""Read a local folder of diffusers' `AutoencoderKL` as an autoencoder of genflow, and write one. Needs no diffusers.

    config.json                                 the net, and the scale of its latents: see `diffusers_config`
    diffusion_pytorch_model.safetensors         the weights, or their index and shards; variants .fp16 and .bf16

Reference: https://huggingface.co/docs/diffusers/api/models/autoencoderkl
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from genflow import build
from genflow.errors import DataError, UsageError
from genflow.families.autoencoder import FIRST_LOG_VARIANCE, Autoencoder
from genflow.families.base import Family
from genflow.nets.autoencoder_kl import DecoderNet, EncoderNet
from genflow.recipe.schema import Recipe, parse
from genflow.sampling.diffusers_config import CLASS, CONFIG, NET_KEYS, Config, Scale, home_of, read_config
from genflow.specs import DataSpec
from genflow.storage.files import write_atomically
from genflow.system.source_hash import digest

NET, WEIGHTS = "autoencoder_kl", "diffusion_pytorch_model"
VARIANTS = ("", ".fp16", ".bf16")  # in the order in which they are looked for

# Names of the layers of attention in folders that older versions of diffusers wrote.
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def read_autoencoder(folder: Path, facts: DataSpec) -> tuple[Recipe, Autoencoder]:
    """Read a folder as an autoencoder whose `encode` and `decode` give the numbers of diffusers' pipelines.

    Weights in half precision are converted to fp32. If `scale_of(folder)` is not known, the latents are not scaled.

    Args:
        folder: of an `AutoencoderKL`, or of a pipeline with one in `vae/`.
        facts: of the pictures.

    Returns:
        The resolved recipe, with which `build.family_of` builds the net, and the family in eval mode with its weights.

    Raises:
        UsageError: there is no such folder, or the pictures do not fit: their channels or their side are others.
        DataError: a file is missing or damaged, or a key or a tensor is none of an `AutoencoderKL` that genflow knows.
    """
    home = home_of(folder)
    config, scale = read_config(home)
    factor = 2 ** (len(config.block_out_channels) - 1)
    _check_pictures(home, config, factor, facts)
    posterior = {"kind": "autoencoder", "factor": factor, "channels": config.latent_channels, "posterior": "gaussian"}
    net = {"kind": NET, **{key: getattr(config, key) for key in NET_KEYS}}
    try:
        recipe = build.resolve(parse({"family": posterior, "net": net}), facts)
    except UsageError as error:  # in the words of a recipe: net.norm_num_groups=5 does not divide ...
        raise DataError(f"{home / CONFIG}: {error.message}", "choose another autoencoder") from error
    family = build.family_of(recipe, facts)
    assert isinstance(family, Autoencoder)
    halves = [family.model["encoder"], family.model["decoder"]]
    tensors = matching(home, read_tensors(home), {k: v for half in halves for k, v in half.state_dict().items()})
    for half in halves:
        half.load_state_dict({name: tensors[name] for name in half.state_dict()})
    _add_log_variance(halves[0], -FIRST_LOG_VARIANCE)
    family.latent_mean.copy_(torch.tensor(scale.mean)[:, None, None])
    family.latent_deviation.copy_(torch.tensor(scale.deviation)[:, None, None])
    return recipe, family.eval()


def digest_of(folder: Path) -> str:
    """A hash of what decides the latents: the net, the scale, and the bytes of the weights; names do not count.

    Raises:
        UsageError, DataError: as in `read_autoencoder`.
    """
    home = home_of(folder)
    return digest([read_config(home)[0].model_dump(mode="json"), hashes_of(home)])


def hashes_of(home: Path) -> list[str]:
    """The hashes of the bytes of the weights.

    Raises:
        DataError: a file is missing.
    """
    hashes = []
    for path in _files(home):
        with open(path, "rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes


def scale_of(folder: Path) -> Scale:
    """The scale of the latents that a folder states.

    Raises:
        UsageError, DataError: as in `read_autoencoder`.
    """
    return read_config(home_of(folder))[1]


def _check_pictures(home: Path, config: Config, factor: int, facts: DataSpec) -> None:
    """Raise UsageError if pictures have other channels, or sides that the factor does not divide."""
    if not facts.bounded:
        what = "latents" if facts.is_latents else "points of the plane"
        raise UsageError(f"{home} encodes pictures, and this data is {what}", "--data a dataset of pictures, by name")
    C, H, W = facts.shape
    if config.in_channels != C:
        raise UsageError(f"{home} encodes pictures with in_channels={config.in_channels}, and this data has {C}",
                         f"genflow prepare SOURCE --channels {config.in_channels}")  # fmt: skip
    if H % factor or W % factor:
        near = max(1, round(H / factor)) * factor
        raise UsageError(f"{home} divides sides by {factor}, which does not divide {H}x{W}",
                         f"genflow prepare SOURCE --size {near}")  # fmt: skip


def _files(home: Path) -> list[Path]:
    """The files of weights: one, or the shards of an index."""
    for variant in VARIANTS:
        if (file := home / f"{WEIGHTS}{variant}.safetensors").is_file():
            return [file]
        if (index := home / f"{WEIGHTS}.safetensors.index{variant}.json").is_file():
            return _shards(index)
    if pickles := sorted(home.glob(f"{WEIGHTS}*.bin*")):
        raise DataError(
            f"{pickles[0]} is a pickle, which can execute code; genflow reads safetensors alone",
            f"with diffusers: load the model of {home} by from_pretrained, and save it again by save_pretrained",
        )
    raise DataError(f"{home} has no {WEIGHTS}.safetensors", "copy the folder again, with its weights")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{index} is not an index of weights", "copy the folder again") from error
    for name in outside or names:
        if name in outside or not (index.parent / name).is_file():
            problem = "is outside of the folder" if name in outside else "is missing"
            raise DataError(f"{index} names {name}, which {problem}", "copy the folder again")
    return [index.parent / name for name in names]


def read_tensors(home: Path) -> dict[str, Tensor]:
    """All weights, with the names of today's diffusers.

    Raises:
        DataError: a file is missing or damaged.
    """
    found: dict[str, Tensor] = {}
    for path in _files(home):
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}", "copy the folder again") from error
        for name, tensor in tensors.items():
            for old, new in OLD_NAMES.items():
                name = name.replace(old, new) if ".attentions." in name else name
            found[name] = tensor
    return found


@torch.no_grad()
def _add_log_variance(encoder: nn.Module, number: float) -> None:
    """Add a number to the log-variance that an encoder gives."""
    assert isinstance(encoder, EncoderNet)
    bias = (encoder.quant_conv or encoder.encoder.conv_out).bias
    assert bias is not None
    bias[len(bias) // 2 :] += number


def matching(home: Path, found: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in fp32.

    Raises:
        DataError: they are not those of the net: one is missing, left over, of another shape, or not finite.
    """
    cure = "copy the folder again, with the config.json of these weights"
    for name in {**own, **found}:
        if name not in own or name not in found:
            problem = "is missing" if name in own else f"is no part of the net that {CONFIG} describes"
            raise DataError(f"{home}: tensor {name} {problem}", cure)
        tensor = found[name]
        if not tensor.is_floating_point():
            raise DataError(f"{home}: tensor {name} holds {tensor.dtype}, not floating-point numbers", cure)
        if own[name].ndim == 2 and tensor.shape[2:] == (1, 1):  # attention written as 1 x 1 convs
            tensor = tensor[:, :, 0, 0]
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(own[name].shape)}"
            raise DataError(f"{home}: tensor {name} has the shape {shapes}", cure)
        found[name] = tensor.float()
        if not found[name].isfinite().all():
            raise DataError(f"{home}: tensor {name} has numbers that are not finite", cure)
    return found


def misfit(family: Family) -> tuple[str, str] | None:
    """Why `write_autoencoder` cannot write an autoencoder, and the option of one that it can write; None if it can."""
    assert isinstance(family, Autoencoder)
    if not isinstance(family.model["encoder"], EncoderNet) or not isinstance(family.model["decoder"], DecoderNet):
        return f"net is not {NET}", f"net.kind={NET}"
    return None if family.gaussian else ("posterior is deterministic", "family.posterior=gaussian")


def write_autoencoder(family: Family, folder: Path) -> None:
    """Write a folder that `AutoencoderKL.from_pretrained` of diffusers loads; the reverse of `read_autoencoder`.

    Its latents need no scale: mean and deviation are part of the 1 x 1 convs, scaling_factor is 1 and shift_factor 0.

    Args:
        family: an autoencoder with the net `autoencoder_kl`.
        folder: an empty folder; created if it does not exist.

    Raises:
        UsageError: the family is no autoencoder, or its net or posterior is none of diffusers.
        OSError: the folder cannot be written.
    """
    if not isinstance(family, Autoencoder):
        raise UsageError(f"{family.title} is no autoencoder", f"genflow train autoencoder --set net.kind={NET}")
    if why := misfit(family):
        problem, option = why
        raise UsageError(
            f"this autoencoder cannot be exported to diffusers: its {problem}",
            f"genflow train autoencoder --set {option}",
        )
    encoder, decoder = family.model["encoder"], family.model["decoder"]
    assert isinstance(encoder, EncoderNet)
    assert isinstance(decoder, DecoderNet)
    channels = family.code_shape[0]
    tensors = {**encoder.state_dict(), **decoder.state_dict()}
    mean, deviation = family.latent_mean.flatten().cpu().double(), family.latent_deviation.flatten().cpu().double()
    # Encoder: (z - mean) / deviation, and log-variance - 2 log deviation; decoder: the inverse, before its conv.
    weight, bias = _conv(encoder.quant_conv, 2 * channels)
    scale = torch.cat([1 / deviation, torch.ones_like(deviation)])
    bias = scale * bias - torch.cat([mean / deviation, 2 * deviation.log() - FIRST_LOG_VARIANCE])
    tensors |= {"quant_conv.weight": (scale[:, None] * weight)[:, :, None, None], "quant_conv.bias": bias}
    weight, bias = _conv(decoder.post_quant_conv, channels)
    tensors |= {"post_quant_conv.weight": (weight * deviation)[:, :, None, None],
                "post_quant_conv.bias": bias + weight @ mean}  # fmt: skip
    levels = len(encoder.options["block_out_channels"])
    document = {
        "_class_name": CLASS, "in_channels": family.facts.shape[0], "out_channels": family.facts.shape[0],
        "latent_channels": channels, **encoder.options, "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "sample_size": family.facts.shape[1], "scaling_factor": 1.0, "shift_factor": 0.0, "latents_mean": None,
        "latents_std": None, "use_quant_conv": True, "use_post_quant_conv": True, "force_upcast": True,
    }  # fmt: skip
    saved = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / f"{WEIGHTS}.safetensors", save(saved, {"format": "pt"}))
    write_atomically(folder / CONFIG, json.dumps(document, indent=2))


def _conv(conv: nn.Conv2d | None, channels: int) -> tuple[Tensor, Tensor]:
    """The matrix and the bias of a 1 x 1 conv in fp64; of none those of the identity."""
    if conv is None or conv.bias is None:
        return torch.eye(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    return conv.weight.detach()[:, :, 0, 0].cpu().double(), conv.bias.detach().cpu().double()
