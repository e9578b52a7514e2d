"""Folders of Stable Diffusion 3: the transformer is read with the numbers of diffusers, or rejected in one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small import TEXT, captions, shaken
from torch import Tensor

from genflow import nets
from genflow.errors import DataError, UsageError
from genflow.sampling.diffusers_sd3 import digest_of, load, read_net
from genflow.specs import NetSpec

SHAPE = (4, 6, 6)
SMALL: dict[str, Any] = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 2, "caption_projection_dim": 16, "joint_attention_dim": TEXT.tokens,
    "pooled_projection_dim": TEXT.pooled, "pos_embed_max_size": 12,
}  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"


def of_diffusers(**config: Any) -> Any:
    """A transformer of diffusers with random weights, whose positions are a third of a patch apart."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return shaken(diffusers.SD3Transformer2DModel(**{**SMALL, **config}), 0.1).eval()


def net_of(folder: Path) -> Any:
    """The net of genflow with the weights of a folder, for a part of the picture's side that it was made for."""
    options, tensors = read_net(folder)
    ports = NetSpec(SHAPE, SHAPE, time=True, text=TEXT)
    made: Any = nets.builder(options.pop("kind"))(ports, 0, **options)
    load(folder, made, tensors)
    return made.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that diffusers wrote."""
    of_diffusers().save_pretrained(tmp_path / "sd3" / "transformer")
    return tmp_path / "sd3"


@pytest.mark.parametrize("config", [{}, {"qk_norm": "rms_norm", "num_layers": 3}, {"patch_size": 1, "sample_size": 6}])
@torch.no_grad()
def test_the_numbers_are_those_of_diffusers(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For text as the encoders give it, with zeros as padding. Shards and half precision are read, too."""
    theirs = of_diffusers(**config)
    theirs.save_pretrained(tmp_path / "a" / "transformer", max_shard_size="20KB")
    assert len(list((tmp_path / "a" / "transformer").glob("*.safetensors"))) > 1
    text, x, t = captions([0, 3, 6]), torch.randn(3, *SHAPE), torch.tensor([0.0, 500.0, 1000.0])
    tokens = text.tokens * text.mask[..., None]
    expected = theirs(x, tokens, text.pooled, t).sample
    theirs.half().save_pretrained(tmp_path / "b" / "transformer", variant="fp16")
    monkeypatch.setitem(sys.modules, "diffusers", None)  # reading must not import it
    torch.testing.assert_close(net_of(tmp_path / "a")(x, t, text), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net_of(tmp_path / "b")(x, t, text), expected, atol=2e-2, rtol=2e-2)
    assert digest_of(tmp_path / "a") != digest_of(tmp_path / "b")


def change(folder: Path, **keys: Any) -> None:
    where = folder / "transformer" / "config.json"
    where.write_text(json.dumps({**json.loads(where.read_text(encoding="utf-8")), **keys}), encoding="utf-8")


def damage(folder: Path, name: str, change: Callable[[Tensor], Tensor] | None) -> None:
    """Change a tensor, or remove it."""
    where = folder / "transformer" / WEIGHTS
    tensors = load_file(where)
    own = tensors.pop(name)
    save_file({**tensors, **({name: change(own).contiguous()} if change else {})}, where)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "is of the class FluxTransformer2DModel, and genflow reads SD3"),
        ({"dual_attention_layers": [0]}, "dual_attention_layers, as Stable Diffusion 3.5 medium has them, are not"),
        ({"out_channels": 8}, "in_channels is 4 and out_channels is 8"),
        ({"caption_projection_dim": 8}, "caption_projection_dim is 8, and the heads have 16 channels"),
        ({"qk_norm": "layer_norm"}, 'qk_norm is "layer_norm": must be \'rms_norm\''),
        ({"num_layer": 2}, r"unknown key num_layer \(did you mean num_layers\?\)"),
        ({"num_layers": 3}, "tensor transformer_blocks.1.norm1_context.linear.weight has the shape"),
        ({"pos_embed_max_size": 13}, r"pos_embed.pos_embed is missing or is not of the shape \(1, 169, 16\)"),
        ({"sample_size": 10}, "the positions in pos_embed.pos_embed are not those of diffusers"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_rejected(keys: dict[str, Any], message: str, folder: Path) -> None:
    """One line names the file and the key or the tensor."""
    change(folder, **keys)
    with pytest.raises(DataError, match=message) as caught:
        net_of(folder)
    assert str(folder) in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("proj_out.bias", None, "tensor proj_out.bias is missing"),
        ("proj_out.bias", lambda tensor: tensor / 0, "tensor proj_out.bias has numbers that are not finite"),
        ("proj_out.bias", lambda tensor: tensor[:3], r"tensor proj_out.bias has the shape \(3,\), not \(16,\)"),
        ("pos_embed.pos_embed", None, "tensor pos_embed.pos_embed is missing"),
        ("pos_embed.pos_embed", lambda tensor: tensor + 1, "the positions in pos_embed.pos_embed are not those"),
    ],
)
def test_damaged_weights_are_rejected(
    name: str, changed: Callable[[Tensor], Tensor] | None, message: str, folder: Path
) -> None:
    """One line names the tensor."""
    damage(folder, name, changed)
    with pytest.raises(DataError, match=message) as caught:
        net_of(folder)
    assert str(folder) in caught.value.message


def test_a_pickle_is_never_loaded(folder: Path) -> None:
    """The hint says how diffusers saves safetensors; a folder without a transformer is rejected."""
    where = folder / "transformer" / WEIGHTS
    where.rename(where.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(DataError, match="is a pickle, which can execute code") as caught:
        digest_of(folder)
    assert "save_pretrained" in caught.value.hint
    with pytest.raises(UsageError, match=r"has no transformer/config\.json"):
        digest_of(folder / "transformer")
