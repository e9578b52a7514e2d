"""`genflow export`: another program loads each form, and draws the run's own samples."""

import math
import subprocess
import sys
from pathlib import Path as File

import numpy as np
import pytest
import torch
from support import small
from support.trained_run import trained_run

from genflow import build, families
from genflow.cli import export
from genflow.data.values import from_x, to_display
from genflow.errors import SetupError, UsageError
from genflow.maths.paths import Path, StraightPath
from genflow.maths.rng import SampleRng
from genflow.sampling.engine import Engine, labels_for
from genflow.sampling.programs import plan
from genflow.sampling.written_sampler import verify, written
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
        ("autoencoder", "diffusers", "", {}, "cannot be exported to diffusers: its net is not autoencoder_kl"),
        ("flow_matching", "pickle", "", {}, "cannot export to 'pickle'"),
        ("flow_matching", "onxx", "", {}, "cannot export to 'onxx'.*onnx"),
    ],
)
def test_a_run_that_does_not_fit_the_form_is_rejected_in_one_line(exported, kind, to, net, sections, message):
    """The hint says what can be exported."""
    with pytest.raises(UsageError, match=message) as caught:
        exported(kind, to, net, **sections)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def without_packages(folder: File, *words: str) -> np.ndarray:
    """What sample.py of an export draws, in a process that can import neither genflow nor Ray."""
    code = "import runpy, sys; sys.modules.update(genflow=None, ray=None); sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    out = folder / "drawn.npy"
    command = [sys.executable, "-c", code, folder / "sample.py", "-n", "6", "--out", out, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return np.load(out)


def shown(engine: Engine, seed: int = 0, label: str = "all", **options) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The same samples by the engine, (N, C, H, W) grey levels 0..255, as `genflow sample -o x.npy` writes them."""
    drawn = engine.draw(range(seed, seed + 6), labels_for(label, 6, engine.facts), **options)
    return to_display(drawn.images, engine.facts).transpose(0, 3, 1, 2)


FAST = {("flow_matching", "onnx"), ("normalizing_flow", "torch_export")}
LOOPS = [
    pytest.param(kind, form, marks=[] if (kind, form) in FAST else [pytest.mark.slow])
    for kind in families.kinds()
    if families.family_class(kind).teacher == "optional" and not families.family_class(kind).is_autoencoder
    for form in ("torch_export", "onnx")
]  # fmt: skip


@pytest.mark.parametrize(("kind", "form"), LOOPS)
def test_a_default_run_is_drawn_without_genflow(exported, capsys, kind: str, form: str):
    """sample.py draws the pictures of `genflow sample`: at most one level of 17 differs, in at most 1 of 1,000 pixels.

    The net is the family's own default.
    """
    if form == "onnx":
        for package in ("onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    own = families.family_class(kind).default_net
    engine, folder = exported(kind, form, own)
    words, options = ["--seed", "3", "--label", "4"], {}
    if kind == "flow_matching":
        words, options = [*words, "--steps", "4", "--guidance", "2.5"], {"steps": 4, "guidance": 2.5}
    theirs, ours = without_packages(folder, *words).astype(int), shown(engine, 3, "4", **options)
    assert np.abs(theirs - ours).max() <= 16
    assert (theirs != ours).mean() <= 0.001
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    if form == "onnx":  # the code of README.md runs as it is
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, done.stderr
    assert {f.suffix for f in folder.iterdir()} >= {".py", ".md", ".pt2" if form == "torch_export" else ".onnx"}


def loop_of(engine: Engine, **options):  # type: ignore[no-untyped-def]
    """What the sampler that an export writes draws for some seeds, and what the family says about it."""
    engine.options |= options
    exported, programs = plan(engine)
    rng, classes = SampleRng(list(SEEDS), "sample"), engine.facts.classes

    def normal() -> np.ndarray:
        return rng.normal((6, *engine.family.noise_shape)).numpy()

    sample = written("run-1", engine, exported, {name: program.module for name, program in programs.items()})
    return sample(normal(), [np.arange(6)] * bool(classes), [np.full(6, classes)] * bool(classes), normal), exported


SAMPLERS_AND_PATHS = [
    ("ddpm", {"schedule": schedule}, {"sampler": sampler, "steps": 5, **more})
    for schedule in ("cosine", "linear", "edm")
    for sampler, more in [
        ("euler", {}), ("ab2", {"clip": True}), ("heun", {"guidance": 2.0}), ("midpoint", {}), ("dpmpp_2m", {}),
        ("edm_heun", {}), ("ddim", {"eta": 0.5}), ("ddpm", {}), ("ab2", {"spacing": "logsnr"}),
        ("euler", {"shift": 3.0, "guidance": 3.0, "guidance_low": 0.2, "guidance_high": 0.7}),
    ]
] + [
    ("flow_matching", {}, {"sampler": "ab2", "shift": 2.0}), ("flow_matching", {}, {"sampler": "edm_heun", "steps": 4}),
    ("ddpm", {"predict": "eps", "T": 50}, {"sampler": "ab2"}), ("ddpm", {"predict": "x"}, {"sampler": "ab2"}),
    ("ddpm", {"predict": "velocity"}, {"sampler": "ab2"}),
    ("ddpm", {"predict": "velocity", "schedule": "edm"}, {"sampler": "heun"}),
    ("consistency", {}, {"steps": 3, "middle": 0.6}), ("meanflow", {}, {"steps": 3}),
    ("normalizing_flow", {}, {}), ("normalizing_flow", {}, {"guidance": 2.0, "temperature": 0.9}),
    ("vae", {}, {"temperature": 0.7}), ("vae", {"prior": "flow"}, {}), ("gan", {}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "own", "options"), SAMPLERS_AND_PATHS)
def test_the_written_sampler_is_the_engines(kind: str, own: dict, options: dict):
    """Every sampler, path and prediction of the written code gives the engine's x to 1e-4."""
    facts = small.FACTS["grey"]
    net = "auto" if kind in ("normalizing_flow", "vae", "gan") else "mlp"
    model = small.shaken(small.family(kind, facts, net, family=own))
    engine = Engine(model, small.recipe(kind, facts, net, family=own))
    x, _ = loop_of(engine, **options)
    rng = SampleRng(list(SEEDS), "sample")
    noise = rng.normal((6, *model.noise_shape))
    ours = model.sample(noise, torch.arange(6), rng, **build.sample_options(model, engine.options)).x
    np.testing.assert_allclose(x, ours.numpy(), atol=1e-4, rtol=1e-5)


def test_what_a_program_cannot_do_is_said():
    """Adaptive steps become heun's, and the noise of a vae's pixels its mean; the export says so."""
    facts = small.FACTS["grey"]
    flow = Engine(small.family("flow_matching", facts, "mlp"), small.recipe("flow_matching", facts, "mlp"))
    x, exported = loop_of(flow, sampler="rk45")
    assert "rk45" in exported.note
    reference = flow.family.sample(
        SampleRng(list(SEEDS), "sample").normal((6, 1, 8, 8)), torch.arange(6), SampleRng([], "none"), sampler="rk45"
    ).x  # fmt: skip
    np.testing.assert_allclose(x, reference.numpy(), atol=1e-2)
    vae = Engine(small.family("vae", facts), small.recipe("vae", facts))
    assert "mean" in loop_of(vae, draw=True)[1].note


class Circle(Path):
    """A path without a formula in the templates."""

    def alpha(self, t: float) -> float:
        return math.cos(math.pi / 2 * t)

    def sigma(self, t: float) -> float:
        return math.sin(math.pi / 2 * t)

    def net_time(self, t: float) -> float:
        return 1000 * t

    def time(self, u: float) -> float:
        return math.atan2(u, 1 - u) / (math.pi / 2)


def test_a_path_without_a_formula_is_written_as_a_table_and_a_wrong_sampler_is_refused():
    """Before it writes a sampler, an export compares its samples with the run's."""
    facts = small.FACTS["grey"]
    model = small.shaken(small.family("flow_matching", facts, "mlp"))
    model.path = Circle()
    engine = Engine(model, small.recipe("flow_matching", facts, "mlp", sample={"sampler": "midpoint"}))
    exported, programs = plan(engine)
    modules = {name: program.module for name, program in programs.items()}
    verify("run-1", engine, exported, modules)
    model.path = StraightPath()
    with pytest.raises(UsageError, match=r"run-1 cannot be exported: the sampler that was written differs .* by \d"):
        verify("run-1", engine, exported, modules)


@pytest.mark.parametrize(("kind", "net"), [("flow_matching", "dit"), pytest.param("vae", "", marks=pytest.mark.slow)])
def test_a_net_without_a_stock_pipeline_has_its_own(exported, capsys, kind: str, net: str):
    """diffusers loads pipeline.py of the folder, and draws the run's samples from the same noise."""
    diffusers = pytest.importorskip("diffusers")
    engine, folder = exported(kind, "diffusers", net)
    assert "no stock pipeline supports its" in capsys.readouterr().err
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        str(folder), custom_pipeline=str(folder), trust_remote_code=True
    )  # fmt: skip
    noise = SampleRng(list(SEEDS), "sample").normal((6, *engine.family.noise_shape))
    theirs = pipeline(class_labels=list(range(6)), latents=noise, output_type="np").images
    ours = engine.draw(SEEDS, list(range(6))).images  # grey levels 0..16
    assert (np.floor(theirs * 17).clip(0, 16) == ours).mean() > 0.995  # except for rounding at a level's edge
    assert len(pipeline(batch_size=2, class_labels=3).images) == 2
    assert "trust_remote_code=True" in (folder / "README.md").read_text(encoding="utf-8")


def test_without_the_package_the_hint_installs_it(exported, monkeypatch):
    """A missing package of ONNX is a SetupError with the extra, before anything is written."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SetupError, match="--to onnx needs the package onnx") as caught:
        exported("gan", "onnx")
    assert "genflow-ray[onnx]" in caught.value.hint


def test_the_halves_of_an_autoencoder_are_programs(exported, prepared, capsys):
    """Its encoder and decoder give the run's latents and pictures."""
    engine, folder = exported("autoencoder", "torch_export", "autoencoder", family={"factor": 2})
    encoder, decoder = (torch.export.load(folder / f"{name}.pt2").module() for name in ("encoder", "decoder"))
    images = prepared("digits", val=0.2).splits["val"].take(np.arange(5))
    z = encoder(engine.to_x(images))
    np.testing.assert_allclose(z.detach().numpy(), engine.encode(images, None, range(5)), atol=1e-4)
    pictures = from_x(decoder(z), engine.facts).astype(int)
    assert (pictures != engine.reconstruct(images)).mean() < 0.001
    assert not (folder / "sample.py").exists()
