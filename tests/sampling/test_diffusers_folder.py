"""Folders of diffusers' `AutoencoderKL`: read with the numbers of diffusers, written for it, rejected in one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small import family, shaken
from torch import Tensor

from genflow import build
from genflow.errors import DataError, GenflowError, UsageError
from genflow.families.autoencoder import Autoencoder
from genflow.maths.rng import SampleRng
from genflow.recipe.schema import parse
from genflow.sampling import encode
from genflow.sampling.diffusers_folder import digest_of, read_autoencoder, scale_of, write_autoencoder
from genflow.specs import DataSpec
from genflow.storage.store import Store

FACTS = DataSpec((3, 16, 16), levels=256)
SMALL: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4}
PLAIN = {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False}
LABEL, NO_RNG = torch.zeros(3, dtype=torch.long), SampleRng([], "none")
WEIGHTS = "diffusion_pytorch_model.safetensors"
MEAN, STD = [0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 1.5]


def pictures(facts: DataSpec = FACTS) -> Tensor:
    return torch.rand(3, *facts.shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


def of_diffusers(**config: Any) -> Any:
    """An `AutoencoderKL` of diffusers with random weights."""
    diffusers = pytest.importorskip("diffusers")
    config = {**SMALL, **config}
    levels = len(config["block_out_channels"])
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return shaken(diffusers.AutoencoderKL(**blocks, **config)).eval()


def own(net: dict[str, Any] | None = None, facts: DataSpec = FACTS, **options: Any) -> Autoencoder:
    """An autoencoder of genflow with the net of diffusers, random weights, and measured latents."""
    net = {"kind": "autoencoder_kl", "block_out_channels": [8, 16], "norm_num_groups": 4, **(net or {})}
    options = {"kind": "autoencoder", "factor": 2, "channels": 4, **options}
    torch.manual_seed(0)
    made = build.family_of(build.resolve(parse({"family": options, "net": net}), facts), facts).eval()
    assert isinstance(made, Autoencoder)
    shaken(made)
    made.latent_mean.copy_(torch.tensor(MEAN)[:, None, None])
    made.latent_deviation.copy_(torch.tensor(STD)[:, None, None])
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that genflow wrote, so that tests of errors do not need diffusers."""
    write_autoencoder(own(), tmp_path / "kl")
    return tmp_path / "kl"


def change(folder: Path, **keys: Any) -> None:
    """Set keys of config.json; `...` removes a key."""
    document = {**json.loads((folder / "config.json").read_text(encoding="utf-8")), **keys}
    kept = {key: value for key, value in document.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")


@torch.no_grad()
def check_equal(theirs: Any, ours: Autoencoder, to_latents: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Latents, and their pictures, are those of diffusers."""
    mean = theirs.encode(x).latent_dist.mode()
    z = ours.encode(x, LABEL, NO_RNG)
    torch.testing.assert_close(z, to_latents(mean), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        ours.decode(z, LABEL, NO_RNG), theirs.decode(mean).sample.clamp(-1, 1), atol=1e-4, rtol=0
    )


SCALES: list[tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = [
    ({"scaling_factor": 0.5}, lambda z: z * 0.5),
    ({"scaling_factor": 1.5305, "shift_factor": 0.0609}, lambda z: (z - 0.0609) * 1.5305),
    (
        {"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": STD},
        lambda z: (z - torch.tensor(MEAN)[:, None, None]) * 0.5 / torch.tensor(STD)[:, None, None],
    ),
    ({"scaling_factor": ...}, lambda z: z * 0.18215),
    ({"scaling_factor": None}, lambda z: z),
]


@pytest.mark.parametrize(("scale", "to_latents"), SCALES, ids=["scale", "shift", "list", "default", "null"])
def test_latents_are_those_of_the_pipelines(scale, to_latents, tmp_path):  # type: ignore[no-untyped-def]
    """For every convention of scale; a folder that states no scale has a note, and an unknown one has none."""
    theirs = of_diffusers()
    theirs.save_pretrained(tmp_path)
    change(tmp_path, **scale)
    recipe, ours = read_autoencoder(tmp_path, FACTS)
    check_equal(theirs, ours, to_latents, pictures())
    stated = scale_of(tmp_path)
    assert stated.known == (scale.get("scaling_factor", 1) is not None)
    assert bool(stated.note) == (scale["scaling_factor"] in (None, ...))
    assert build.family_of(recipe, FACTS).load_state_dict(ours.state_dict())


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (PLAIN, (3, 16, 16)),
        ({"block_out_channels": (8, 12, 16, 16), "layers_per_block": 2, "norm_num_groups": 2}, (3, 16, 32)),
        ({"in_channels": 1, "out_channels": 1, "latent_channels": 2, "use_quant_conv": False}, (1, 20, 20)),
    ],
)
def test_every_net_has_the_numbers_of_diffusers(config: dict[str, Any], shape: tuple[int, int, int], tmp_path: Path):
    """Levels, blocks, attention and both 1 x 1 convs are those of the folder, for pictures of any side that fits."""
    theirs = of_diffusers(**config)
    theirs.save_pretrained(tmp_path)
    facts = DataSpec(shape, levels=256)
    check_equal(theirs, read_autoencoder(tmp_path, facts)[1], lambda z: z * 0.18215, pictures(facts))


def test_shards_variants_and_pipelines_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards give the same numbers, half precision is computed in fp32, and `vae/` of a pipeline is found."""
    theirs = of_diffusers()
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    theirs.half().save_pretrained(tmp_path / "pipeline" / "vae", variant="fp16")
    theirs.float()
    monkeypatch.setitem(sys.modules, "diffusers", None)  # reading must not import it
    x = pictures()
    z = [read_autoencoder(tmp_path / name, FACTS)[1].encode(x, LABEL, NO_RNG) for name in ("sharded", "pipeline")]
    with torch.no_grad():
        torch.testing.assert_close(z[1], theirs.encode(x).latent_dist.mode() * 0.18215, atol=1e-5, rtol=1e-5)
    assert 0 < float((z[0] - z[1]).abs().max()) < 0.01
    assert digest_of(tmp_path / "pipeline") == digest_of(tmp_path / "pipeline" / "vae")


def test_old_names_of_attention_are_read(folder: Path) -> None:
    """Folders of older versions of diffusers call the layers query, key, value and proj_attn."""
    before = read_autoencoder(folder, FACTS)[1].state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        new = next((name.replace(today, then) for today, then in old.items() if today in name), name)
        renamed[new] = tensor[:, :, None, None] if "proj_attn.weight" in new else tensor
    save_file({name: tensor.contiguous() for name, tensor in renamed.items()}, folder / WEIGHTS)
    after = read_autoencoder(folder, FACTS)[1].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("net", [{}, PLAIN])
def test_diffusers_loads_what_genflow_writes(net: dict[str, Any], tmp_path: Path) -> None:
    """The mean and the deviation are part of the weights, so the latents of stock diffusers need no scale."""
    diffusers = pytest.importorskip("diffusers")
    ours, x = own(net), pictures()
    write_autoencoder(ours, tmp_path)
    theirs, report = diffusers.AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert (theirs.config.scaling_factor, theirs.config.shift_factor) == (1, 0)
    with torch.no_grad():
        posterior = theirs.encode(x).latent_dist
        log_variance = ours._posterior(x)[1] - 2 * ours.latent_deviation.log()
    torch.testing.assert_close(posterior.logvar, log_variance, atol=1e-5, rtol=1e-5)
    check_equal(theirs, ours, lambda z: z, x)
    again = read_autoencoder(tmp_path, FACTS)[1]
    check_equal(theirs, again, lambda z: z, x)
    torch.testing.assert_close(again._posterior(x)[1], posterior.logvar, atol=1e-5, rtol=1e-5)


def test_what_diffusers_does_not_have_is_not_written(tmp_path: Path) -> None:
    """Another family, another net, and a deterministic posterior are rejected, and nothing is written."""
    others = [family("flow_matching", FACTS), family("autoencoder", FACTS), own(posterior="deterministic")]
    for other, message in zip(others, ("is no autoencoder", "net is not autoencoder_kl", "deterministic"), strict=True):
        with pytest.raises(UsageError, match=message) as caught:
            write_autoencoder(other, tmp_path / "out")
        assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_the_digest_is_of_the_numbers(folder: Path) -> None:
    """Another scale or another weight changes it; the name of the folder and keys without effect do not."""
    first = digest_of(folder)
    moved = folder.rename(folder.with_name("moved"))
    change(moved, sample_size=512, force_upcast=False, _name_or_path="x", act_fn=...)
    assert digest_of(moved) == first
    change(moved, scaling_factor=2.0)
    second = digest_of(moved)
    weights = load_file(moved / WEIGHTS)
    weights["quant_conv.bias"][0] += 1
    save_file(weights, moved / WEIGHTS)
    assert len({first, second, digest_of(moved)}) == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, "is of the class AutoencoderTiny, and genflow reads AutoencoderKL alone"),
        ({"_class_name": ...}, "names no _class_name"),
        ({"act_fn": "relu"}, 'act_fn is "relu": must be \'silu\''),
        ({"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]}, 'up_block_types is "AttnUpDecoderBlock2D"'),
        ({"down_block_types": ["DownEncoderBlock2D"]}, "down_block_types has 1 blocks, and block_out_channels has 2"),
        ({"scaling_facto": 1.0}, r"unknown key scaling_facto \(did you mean scaling_factor\?\)"),
        ({"scaling_factor": 0}, "scaling_factor is 0: must be greater than 0"),
        ({"scaling_factor": "1"}, 'scaling_factor is "1": must be a number'),
        ({"latents_mean": [0.0] * 4}, "of latents_mean and latents_std only one is set"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 3}, "latents_std has 3 numbers, and latents have 4"),
        ({"latents_mean": MEAN, "latents_std": STD, "shift_factor": 1}, "both shift_factor and latents_mean are set"),
        ({"norm_num_groups": 3}, "norm_num_groups=3 does not divide the 8 of net.block_out_channels"),
        ({"layers_per_block": 99}, "layers_per_block: must be at most 16"),
        ({"out_channels": 4}, "in_channels is 3 and out_channels is 4"),
        ({"latent_channels": 8}, r"tensor encoder.conv_out.weight has the shape \(8, 16, 3, 3\), not \(16, 16, 3, 3\)"),
        ({"layers_per_block": 2}, "tensor encoder.down_blocks.0.resnets.1.norm1.weight is missing"),
        ({"mid_block_add_attention": False}, "tensor decoder.mid_block.attentions.0.* is no part of the net"),
        (
            {"block_out_channels": [8], "down_block_types": ["DownEncoderBlock2D"],
             "up_block_types": ["UpDecoderBlock2D"]},
            "block_out_channels has 1 levels, which divide sides by 1; genflow knows 2, 4, 8, 16, 32",
        ),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_rejected(keys: dict[str, Any], message: str, folder: Path) -> None:
    """One line names the file and the key or the tensor."""
    change(folder, **keys)
    with pytest.raises(DataError, match=message) as caught:
        read_autoencoder(folder, FACTS)
    check_line(caught.value, folder)


def check_line(error: GenflowError, folder: Path) -> None:
    assert "\n" not in error.message + error.hint
    assert str(folder) in error.message
    assert error.hint


def no_file(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")


def torn(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        save_file({**tensors, name: change(tensors[name])}, folder / WEIGHTS)

    return damage


def index(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_file, "has no diffusion_pytorch_model.safetensors"),
        (pickle, "diffusion_pytorch_model.bin is a pickle, which can execute code"),
        (torn, "cannot be read: "),
        (index("diffusion-1.safetensors"), "index.json names diffusion-1.safetensors, which is missing"),
        (index("../outside.safetensors"), "names ../outside.safetensors, which is outside of the folder"),
        (lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]", encoding="utf-8"), "names no _class_name"),
        (tensor("quant_conv.bias", lambda t: t[:3].clone()), r"quant_conv.bias has the shape \(3,\), not \(8,\)"),
        (tensor("quant_conv.bias", lambda t: t / 0), "tensor quant_conv.bias has numbers that are not finite"),
        (tensor("quant_conv.bias", lambda t: t.to(torch.int8)), "holds torch.int8, not floating-point numbers"),
    ],
)
def test_damaged_files_are_rejected(damage: Callable[[Path], None], message: str, folder: Path) -> None:
    """One line names the file or the tensor; a pickle is never loaded."""
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        read_autoencoder(folder, FACTS)
    check_line(caught.value, folder)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (DataSpec((1, 16, 16), 256), "encodes pictures with in_channels=3, and this data has 1"),
        (DataSpec((3, 15, 15), 256), "divides sides by 2, which does not divide 15x15"),
        (DataSpec((2, 1, 1), None), "encodes pictures, and this data is points of the plane"),
    ],
)
def test_pictures_that_do_not_fit_are_rejected(facts: DataSpec, message: str, folder: Path) -> None:
    """One line names both sizes, and its hint prepares pictures that fit."""
    with pytest.raises(UsageError, match=message) as caught:
        read_autoencoder(folder, facts)
    check_line(caught.value, folder)


def test_other_folders_are_rejected(tmp_path: Path) -> None:
    """A folder without config.json, and one that does not exist."""
    for path, message in ((tmp_path, "has no config.json, and no vae/config.json"), (tmp_path / "x", "is no folder")):
        with pytest.raises(UsageError, match=message) as caught:
            digest_of(path)
        check_line(caught.value, tmp_path)


@pytest.mark.parametrize("scale", [None, 1000.0])
def test_an_unknown_scale_is_measured_when_a_dataset_is_encoded(
    scale: float | None, store: Store, prepared: Callable[..., Any], tmp_path: Path
) -> None:
    """Latents then have mean 0 and deviation 1, and a warning says so; a scale that the folder states is kept."""
    digits = DataSpec((1, 8, 8), levels=17)
    write_autoencoder(own(facts=digits), tmp_path / "kl")
    change(tmp_path / "kl", scaling_factor=scale)
    recipe = parse({"data": {"name": prepared("digits", val=0.2).artifact.id}})
    task = encode.plan(store, str(tmp_path / "kl"), recipe)
    folder = tmp_path / "latents"
    encode.copy_autoencoder(task, folder)
    encoder = encode.Encoder(task, folder)
    for file, first, last in task.shards:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        encoder.write(folder / file, first, last)
    measured = encode.finish(task, folder)
    about_scale, about_deviation = "mean and deviation of the latents are measured", "deviation of the latents is"
    (warning,) = measured.warnings
    if scale is None:
        assert about_scale in warning
        assert measured.mean == pytest.approx([0] * 4, abs=0.01)
        assert measured.deviation == pytest.approx([1] * 4, abs=0.01)
    else:
        assert about_deviation in warning
        assert min(measured.deviation) > 2
