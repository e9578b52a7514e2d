"""`genflow export`: another program loads each form, and draws the run's own samples."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import small
from support.trained_run import trained_run

from genflow import families
from genflow.cli import export
from genflow.errors import UsageError
from genflow.maths.rng import SampleRng
from genflow.sampling.engine import Engine
from genflow.sampling.export import forms, traced
from genflow.storage.store import Store

SEEDS = range(6)
NO_LABELS = [10] * 6


@pytest.fixture
def exported(store: Store, prepared, monkeypatch, tmp_path):  # type: ignore[no-untyped-def]
    """Train a few steps, export, and return the engine and the folder."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))

    def make(kind: str, to: str, net: str = "", **sections):  # type: ignore[no-untyped-def]
        run = trained_run(store, prepared("digits", val=0.2), kind, name=f"{kind}-{to}-{net}", net=net, **sections)
        export.export(run.id, to, tmp_path / "out", json=True)
        return Engine.load(run), tmp_path / "out"

    return make


def use_noise_of_engine(pipeline: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pipeline of diffusers start from the engine's noise, which torch's generators cannot draw."""
    noise = SampleRng(list(SEEDS), "sample").normal((len(SEEDS), 1, 8, 8))
    monkeypatch.setattr(sys.modules[type(pipeline).__module__], "randn_tensor", lambda shape, **_: noise)


def test_safetensors_draw_the_runs_own_samples(exported, capsys):
    """The folder gives the same pixels; a folder that is not empty is rejected."""
    engine, folder = exported("flow_matching", "safetensors")
    np.testing.assert_array_equal(Engine.from_folder(folder).draw(SEEDS).images, engine.draw(SEEDS).images)
    with pytest.raises(UsageError, match="not empty"):
        export.export("latest", "safetensors", folder, json=True)


@pytest.mark.parametrize(
    ("family", "clip"), [({}, False), ({}, True), ({"schedule": "linear", "predict": "eps"}, True)]
)
def test_a_stock_pipeline_draws_the_runs_own_samples(exported, capsys, monkeypatch, family, clip):
    """DDIMPipeline, loaded from the folder, gives the same images from the same noise, without a label."""
    diffusers = pytest.importorskip("diffusers")
    engine, folder = exported("ddpm", "diffusers", "unet2d", family=family, sample={"clip": clip})
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(folder))
    assert type(pipeline).__name__ == "DDIMPipeline"
    pipeline.set_progress_bar_config(disable=True)
    use_noise_of_engine(pipeline, monkeypatch)
    theirs = pipeline(
        batch_size=6, num_inference_steps=10, output_type="np", use_clipped_model_output=clip
    ).images
    ours = engine.draw(SEEDS, NO_LABELS, steps=10, sampler="ddim").images  # grey levels 0..16
    assert (np.floor(theirs * 17).clip(0, 16) == ours).mean() > 0.995  # except for rounding at a level's edge


def test_a_flow_goes_to_eulers_scheduler(exported, capsys, monkeypatch):
    """DDPMPipeline with FlowMatchEulerDiscreteScheduler, at the scheduler's own times."""
    diffusers = pytest.importorskip("diffusers")
    from genflow.maths.guidance import Guided
    from genflow.maths.samplers import euler

    engine, folder = exported("flow_matching", "diffusers", "unet2d", sample={"shift": 3.0})
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    use_noise_of_engine(pipeline, monkeypatch)
    theirs = pipeline(batch_size=6, num_inference_steps=10, output_type="np").images
    family, rng = engine.family, SampleRng(list(SEEDS), "sample")
    net = Guided(family.net, torch.tensor(NO_LABELS), 10)
    with torch.no_grad():
        times = pipeline.scheduler.sigmas.tolist()
        x = euler(family.denoiser(net), family.path, rng.normal((6, 1, 8, 8)), times, rng)
    ours = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-3)
    assert pipeline.scheduler.config.shift == 3.0  # that of the run


def test_an_autoencoder_goes_to_diffusers(exported, prepared, capsys):
    """AutoencoderKL, loaded from the folder, has the run's latents without a scale, and decodes them as the run."""
    diffusers = pytest.importorskip("diffusers")
    engine, folder = exported("autoencoder", "diffusers", "autoencoder_kl", family={"factor": 2})
    theirs = diffusers.AutoencoderKL.from_pretrained(folder)
    images = prepared("digits", val=0.2).splits["val"].take(np.arange(6))
    z = torch.from_numpy(engine.encode(images, None, SEEDS))
    with torch.no_grad():
        latents = theirs.encode(engine.to_x(images)).latent_dist.mode()
        pictures = theirs.decode(latents).sample.clamp(-1, 1)
    torch.testing.assert_close(latents, z, atol=1e-4, rtol=1e-4)
    label, rng = torch.tensor(NO_LABELS), SampleRng(list(SEEDS), "code")
    torch.testing.assert_close(pictures, engine.family.decode(z, label, rng), atol=1e-4, rtol=0)
    assert "AutoencoderKL.from_pretrained" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "to", "net", "sections", "message"),
    [
        ("ddpm", "diffusers", "", {}, "no stock pipeline supports its net"),
        ("ddpm", "diffusers", "unet2d", {"family": {"schedule": "edm"}}, "no stock pipeline supports its noise"),
        ("vae", "diffusers", "", {}, "no stock pipeline supports its noise"),
        ("autoencoder", "diffusers", "", {}, "cannot be exported to diffusers: its net is not autoencoder_kl"),
        ("autoencoder", "torch_export", "", {}, "cannot be exported to torch_export: it draws no pictures of its own"),
        ("flow_matching", "torch_export", "", {}, "samples in many steps"),
        ("flow_matching", "pickle", "", {}, "cannot export to 'pickle'"),
    ],
)
def test_a_run_that_does_not_fit_the_form_is_rejected_in_one_line(exported, kind, to, net, sections, message):
    """The hint says what can be exported."""
    with pytest.raises(UsageError, match=message) as caught:
        exported(kind, to, net, **sections)
    assert "\n" not in caught.value.message
    assert caught.value.hint


READ = """
import sys, numpy as np, torch
sample = torch.export.load(sys.argv[1]).module()
x = sample(torch.from_numpy(np.load(sys.argv[2])), torch.tensor([0, 3, 10, 10, 9, 1]))
np.save(sys.argv[3], x.detach().numpy())
assert not any(name.split(".")[0] == "genflow" for name in sys.modules)
"""


@pytest.mark.parametrize("kind", ["gan", pytest.param("vae", marks=pytest.mark.slow)])
def test_a_program_runs_without_genflow(exported, capsys, tmp_path: Path, kind: str):
    """torch.export's program runs in a process without genflow, with another number of rows than it was traced with."""
    engine, folder = exported(kind, "torch_export")
    noise = SampleRng(list(SEEDS), "sample").normal((6, *engine.family.noise_shape))
    np.save(tmp_path / "noise.npy", noise.numpy())
    words = [sys.executable, "-I", "-c", READ, folder / "sample.pt2", tmp_path / "noise.npy", tmp_path / "x.npy"]
    subprocess.run(words, check=True, cwd=tmp_path)
    ours = engine.family.sample(noise, torch.tensor([0, 3, 10, 10, 9, 1]), SampleRng(list(SEEDS), "sample")).x
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), ours.numpy(), atol=1e-5)


ONE_PASS = [kind for kind in families.kinds() if "torch_export" in forms(families.family_class(kind))]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        # TarFlow unrolls its 64 patches: half a minute
        pytest.param(kind, data, marks=[pytest.mark.slow] if (kind, data) == ("normalizing_flow", "grey") else [])
        for kind in ONE_PASS
        for data in ("grey", "points")
    ],
)
def test_every_one_pass_sampler_can_be_traced(kind: str, data: str):
    """The traced program gives the family's samples, with another number of rows than it was traced with."""
    model = small.family(kind, small.FACTS[data]).requires_grad_(False)
    steps = {"steps": 1} if "steps" in inspect.signature(model.sample).parameters else {}
    program = traced(model, steps).module()
    noise = SampleRng(list(SEEDS), "sample").normal((6, *model.noise_shape))
    label = torch.full((6,), model.facts.classes)
    ours = model.sample(noise, label, SampleRng(list(SEEDS), "sample"), **steps).x
    torch.testing.assert_close(program(noise, label), ours, atol=1e-5, rtol=1e-5)
