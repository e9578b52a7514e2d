"""Folders of pipelines: diffusers draws a run's own pictures from them; what does not fit is rejected in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small import TEXT, captions, family, recipe, shaken
from torch import Tensor

from genflow.errors import UsageError
from genflow.families.base import Family
from genflow.maths.rng import SampleRng
from genflow.sampling.diffusers_pipelines import ABSENT, write_pipeline, write_text_to_image
from genflow.sampling.engine import Engine
from genflow.specs import DataSpec
from genflow.text import Text

PICTURES = {"square": DataSpec((3, 16, 16), levels=256), "wide": DataSpec((1, 16, 24), levels=256)}
WORDS = ["", "a red square", "ein grünes Quadrat"]  # captions 0, 1 and 6 of `support.small`
STEPS, CLOSE = 5, 2e-5  # of pictures in [0, 1]


def autoencoder(net: str = "autoencoder_kl", pictures: str = "square", **options: Any) -> Family:
    """An autoencoder with random weights, whose latents have a mean and a deviation."""
    own = {"factor": 2, "channels": 4, **options}
    made: Any = shaken(family("autoencoder", PICTURES[pictures], net, family=own), 0.1)
    made.latent_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0])[:, None, None])
    made.latent_deviation.copy_(torch.tensor([0.5, 1.0, 2.0, 1.5])[:, None, None])
    return made


def engine(
    kind: str, net: str, text: bool = False, decoder: Family | None = None, classes: int = 0, **sections: Any
) -> Engine:
    """An engine of a run with random weights: on latents if there is an autoencoder to decode them."""
    facts = decoder.facts if decoder else PICTURES["square"]
    names = tuple(map(str, range(classes)))
    if decoder:
        facts = DataSpec((4, *(side // 2 for side in facts.shape[1:])), None, names, sigma_data=1.0, autoencoder="a",
                         text=TEXT if text else None)  # fmt: skip
    elif text:
        facts = DataSpec(facts.shape, 256, text=TEXT)
    data = {"name": "shapes", "latents": "shapes-1" if decoder else "", "text": "shapes-2" if text else ""}
    made = recipe(kind, facts, net, data=data, **sections)
    return Engine(shaken(family(kind, facts, net, **sections), 0.1), made, autoencoder=decoder)


def pixels(engine: Engine, label: Tensor | Text, **options: Any) -> Tensor:
    """The engine's pictures of seeds 0, 1, ... as numbers in [0, 1], before they are rounded to grey levels."""
    rng = SampleRng(list(range(len(label))), "sample")
    x = engine.family.sample(rng.normal((len(label), *engine.family.noise_shape)), label, rng, **options).x
    return engine._decoded(x) / 2 + 0.5


def noise(engine: Engine, rows: int = 2) -> Tensor:
    return SampleRng(list(range(rows)), "sample").normal((rows, *engine.family.noise_shape))


def write_prompts(engine: Engine, folder: Path) -> tuple[str, str]:
    return write_text_to_image("run-1", engine, folder, WORDS, captions([0, 1, 6]))


@pytest.mark.parametrize(("guidance", "shift", "pictures"), [(1.0, 1.0, "square"), (4.0, 3.0, "wide")])
@torch.no_grad()
def test_the_parts_of_stable_diffusion_3_draw_the_runs_own_pictures(
    guidance: float, shift: float, pictures: str, tmp_path: Path
) -> None:
    """The loop of the pipeline on the classes of diffusers, with the embeddings in the folder."""
    diffusers = pytest.importorskip("diffusers")
    run = engine("flow_matching", "sd3", True, autoencoder(pictures=pictures), sample={"shift": shift})
    write_prompts(run, tmp_path)
    assert json.loads((tmp_path / "prompts.json").read_text(encoding="utf-8")) == WORDS
    parts = {"transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL"}
    net, vae = (getattr(diffusers, parts[name]).from_pretrained(tmp_path, subfolder=name) for name in parts)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    scheduler.set_timesteps(sigmas=[1 - i / STEPS for i in range(STEPS)])
    embeds, pooled = load(tmp_path)
    x, rows = noise(run), [0, 0, 1, 2]
    for t in scheduler.timesteps:
        without, guided = net(torch.cat([x, x]), embeds[rows], pooled[rows], t.expand(4)).sample.chunk(2)
        x = scheduler.step(without + guidance * (guided - without), t, x).prev_sample
    theirs = (vae.decode(x).sample / 2 + 0.5).clamp(0, 1)
    ours = pixels(run, captions([1, 6]), sampler="euler", steps=STEPS, guidance=guidance, shift=shift)
    assert theirs.std() > 0.1
    torch.testing.assert_close(theirs, ours, atol=CLOSE, rtol=0)
    other = pixels(run, captions([0, 6]), sampler="euler", steps=STEPS, guidance=guidance, shift=shift)
    assert (other - ours).abs()[0].max() > 100 * CLOSE


def load(folder: Path) -> tuple[Tensor, Tensor]:
    from safetensors.torch import load_file

    prompts = load_file(folder / "prompts.safetensors")
    return prompts["prompt_embeds"], prompts["pooled_prompt_embeds"]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_pipeline_draws_the_runs_own_pictures(guidance: float, tmp_path: Path) -> None:
    """`StableDiffusion3Pipeline` itself, whose module requires transformers, with the empty caption as negative."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    from diffusers import StableDiffusion3Pipeline

    run = engine("flow_matching", "sd3", True, autoencoder(), sample={"shift": 3.0})
    write_prompts(run, tmp_path)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path, **dict.fromkeys(ABSENT))
    pipeline.set_progress_bar_config(disable=True)
    embeds, pooled = load(tmp_path)
    theirs = pipeline(
        prompt_embeds=embeds[1:], pooled_prompt_embeds=pooled[1:], negative_prompt_embeds=embeds[[0, 0]],
        negative_pooled_prompt_embeds=pooled[[0, 0]], guidance_scale=guidance, latents=noise(run), output_type="pt",
        sigmas=[1 - i / STEPS for i in range(STEPS)],
    ).images  # fmt: skip
    ours = pixels(run, captions([1, 6]), sampler="euler", steps=STEPS, guidance=guidance, shift=3.0)
    torch.testing.assert_close(theirs, ours, atol=CLOSE, rtol=0)


IN_ANOTHER_PROCESS = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] != "genflow", "genflow is imported"
sys.meta_path.insert(0, Blocker())
exec(open("example.py", encoding="utf-8").read())
import numpy
numpy.save("images.npy", numpy.stack([numpy.asarray(image) for image in images]))
"""


def test_the_readme_of_stable_diffusion_3_runs_without_genflow(tmp_path: Path) -> None:
    """Its example draws a picture of the data's size for each caption in the folder."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    run = engine("flow_matching", "sd3", True, autoencoder(pictures="wide"), sample={"steps": 2, "guidance": 3.0})
    use, _ = write_prompts(run, tmp_path)
    (tmp_path / "example.py").write_text(use, encoding="utf-8")
    subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS], check=True, cwd=tmp_path)
    assert np.load(tmp_path / "images.npy").shape == (2, 16, 24)


@pytest.mark.parametrize(
    ("kind", "sampler", "sections"),
    [
        ("flow_matching", "euler", {"sample": {"shift": 2.0, "steps": STEPS, "sampler": "euler"}}),
        ("ddpm", "ddim", {"sample": {"clip": True, "steps": STEPS}}),
        ("ddpm", "ddim", {"family": {"schedule": "linear", "predict": "eps"}, "sample": {"steps": STEPS}}),
    ],
)
@torch.no_grad()
def test_the_example_for_latents_draws_the_runs_own_pictures(
    kind: str, sampler: str, sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of the README, from the engine's noise, for "no label" and all options of the run."""
    pytest.importorskip("diffusers")
    run = engine(kind, "unet2d", decoder=autoencoder(), classes=3, **sections)
    use, _ = write_pipeline("run-1", run, tmp_path)
    start = noise(run, 16)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "randn", lambda *shape: start if shape == tuple(start.shape) else None)
    names: dict[str, Any] = {}
    exec(use, names)
    monkeypatch.undo()
    ours = pixels(run, torch.full((16,), 3), **{**run.options, "sampler": sampler})
    theirs = (names["pictures"] / 2 + 0.5).clamp(0, 1)
    assert theirs.std() > 0.1
    torch.testing.assert_close(theirs, ours, atol=CLOSE, rtol=0)
    assert [image.size for image in names["images"]] == [(16, 16)] * 16


WITH_CAPTIONS = "with captions it needs flow_matching on latents with the net sd3"
TRAIN_SD3 = "genflow train flow_matching --latents {} --text shapes-2 --set net.kind=sd3"
TRAIN_UNET = "train ddpm (linear or cosine, T=1000) or flow_matching with --latents {} --set net.kind=unet2d"
ENCODE = "genflow train autoencoder --data shapes --set {}, then genflow encode shapes --autoencoder latest, then "
KL = ENCODE.format("net.kind=autoencoder_kl")
REJECTED: dict[str, tuple[Callable[[], Engine], str, str]] = {
    "net": (
        lambda: engine("flow_matching", "dit", decoder=autoencoder()),
        "no stock pipeline supports its net",
        TRAIN_UNET.format("shapes-1"),
    ),
    "autoencoder's net": (
        lambda: engine("flow_matching", "unet2d", decoder=autoencoder("autoencoder")),
        "the net of its autoencoder is not autoencoder_kl",
        KL + TRAIN_UNET.format("latest"),
    ),
    "posterior": (
        lambda: engine("flow_matching", "unet2d", decoder=autoencoder(posterior="deterministic")),
        "the posterior of its autoencoder is deterministic",
        ENCODE.format("family.posterior=gaussian") + TRAIN_UNET.format("latest"),
    ),
    "both nets": (
        lambda: engine("flow_matching", "mmdit", True, autoencoder("autoencoder")),
        f"the net of its autoencoder is not autoencoder_kl, and {WITH_CAPTIONS}",
        KL + TRAIN_SD3.format("latest"),
    ),
    "captions of pixels": (
        lambda: engine("flow_matching", "sd3", True),
        WITH_CAPTIONS,
        KL + TRAIN_SD3.format("latest"),
    ),
    "captions of ddpm": (
        lambda: engine("ddpm", "sd3", True, autoencoder()),
        WITH_CAPTIONS,
        TRAIN_SD3.format("shapes-1"),
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_diffusers_does_not_have_is_rejected(name: str, tmp_path: Path) -> None:
    """One line says everything that does not fit, the hint names the commands for a run that fits, and nothing is
    written."""
    make, message, hint = REJECTED[name]
    with pytest.raises(UsageError) as caught:
        write_pipeline("run-1", make(), tmp_path / "out")
    assert caught.value.message == f"run run-1 cannot be exported to diffusers: {message}"
    assert caught.value.hint == hint
    assert not (tmp_path / "out").exists()
