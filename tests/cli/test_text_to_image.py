"""Text to image between genflow and diffusers, by the command line: prompts of exports, and training from a folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import text_folders
from support.commands import Command, in_this_process
from support.latents import dataset, embedded, encoded, pictures, task
from support.small import FACTS, family, recipe, shaken
from support.trained_run import trained_run
from torch import Tensor

from genflow import runs
from genflow.cli import export
from genflow.commands import starting
from genflow.data.values import from_x
from genflow.errors import UsageError
from genflow.evaluation.report.reproduce import commands
from genflow.maths.rng import SampleRng
from genflow.recipe.schema import Recipe, parse
from genflow.sampling.engine import Engine
from genflow.sampling.export import write as export_form
from genflow.sampling.programs import PARTS, plan, write_prompts
from genflow.sampling.written_sampler import written
from genflow.storage.store import Artifact, Store

STEPS = 5


def load(folder: Path) -> tuple[Tensor, Tensor]:
    prompts = load_file(folder / "prompts.safetensors")
    return prompts["prompt_embeds"], prompts["pooled_prompt_embeds"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact]:
    """A run of the net `sd3` on latents and captions, in a store."""
    folder = tmp_path_factory.mktemp("text-to-image")
    store = Store(folder / "store")
    data = dataset(store, pictures(folder / "colours", 60), val=0.3)
    texts = embedded(store, text_folders.write(folder / "bert", text_folders.BERT))
    small = {"net": "autoencoder_kl", "family": {"channels": 3, "factor": 2}}
    latents = encoded(store, task(store, trained_run(store, data, "autoencoder", steps=2, **small)))
    return store, trained_run(store, data, "flow_matching", net="sd3", latents=latents, texts=texts, steps=2)


@torch.no_grad()
def test_a_run_is_exported_with_its_prompts(
    trained: tuple[Store, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`genflow export --prompt` writes embeddings of the words; they draw what `genflow sample --prompt` draws."""
    diffusers = pytest.importorskip("diffusers")
    store, run = trained
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    asked = ["a green square, number 1", "a red tiger", "a tiger" + 40 * " red"]
    (tmp_path / "words.txt").write_text("\n\n".join(asked[1:]), encoding="utf-8")
    out = tmp_path / "out"
    export.export(run.id, "diffusers", out, prompt=asked[:1], prompts=tmp_path / "words.txt", json=True)
    assert "warning: the prompt 'a tiger red red" in capsys.readouterr().err
    assert json.loads((out / "prompts.json").read_text(encoding="utf-8")) == ["", *asked]
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-to-image" in readme
    assert "The run itself samples with the sampler ab2, which the pipeline does not have." in readme
    own = Engine.load(run)
    ours = own.draw(range(3), prompts=asked, sampler="euler", steps=STEPS, guidance=1.0).images
    net = diffusers.SD3Transformer2DModel.from_pretrained(out, subfolder="transformer")
    vae = diffusers.AutoencoderKL.from_pretrained(out, subfolder="vae")
    embeds, pooled = load(out)
    x = SampleRng([0, 1, 2], "sample").normal((3, *own.family.noise_shape))
    for i in range(STEPS):
        x = x - net(x, embeds[1:], pooled[1:], torch.full((3,), 1000 * (1 - i / STEPS))).sample / STEPS
    theirs = (vae.decode(x).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert (np.floor(theirs * 256).clip(0, 255) == ours).mean() > 0.99  # except for rounding at a level's edge


def test_without_prompts_an_export_has_held_out_captions(trained: tuple[Store, Artifact], tmp_path: Path) -> None:
    """Eight of them and the empty caption, without the text encoder; other forms reject prompts."""
    _, run = trained
    own = Engine.load(run)
    export_form(run, own, "diffusers", tmp_path / "out")
    captions = json.loads((tmp_path / "out" / "prompts.json").read_text(encoding="utf-8"))
    assert captions[0] == ""
    assert len(captions) == 1 + 8
    assert set(captions[1:]) <= set(own.prompts.captions)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="--prompt: an export to safetensors holds no embeddings of prompts"):
        export_form(run, own, "safetensors", tmp_path / "other", ["a red tiger"])
    grey = Engine(family("ddpm", FACTS["grey"], "mlp"), recipe("ddpm", FACTS["grey"], "mlp"))
    with pytest.raises(UsageError, match="--prompt: the export of a run that reads no captions holds no embeddings"):
        export_form(run, grey, "diffusers", tmp_path / "other", ["red"])
    assert not (tmp_path / "other").exists()


def test_a_program_reads_stored_captions(trained: tuple[Store, Artifact], tmp_path: Path) -> None:
    """The written sampler draws the run's pictures of a caption, with guidance, from the embeddings in the folder."""
    own = Engine.load(trained[1])
    own.options |= {"guidance": 2.5, "steps": 3}
    asked = own.prompts.captions[:2]  # type: ignore[union-attr]
    write_prompts(own, tmp_path, asked)
    assert json.loads((tmp_path / "prompts.json").read_text(encoding="utf-8")) == ["", *asked]
    stored = np.load(tmp_path / "prompts.npz")
    condition, nothing = ([stored[name][rows] for name in PARTS] for rows in ([1, 2], [0, 0]))
    noise = SampleRng([5, 6], "sample").normal((2, *own.family.noise_shape)).numpy()
    exported, programs = plan(own)
    modules = {name: program.module for name, program in programs.items()}
    x = written("run-1", own, exported, modules)(noise, condition, nothing, None)
    decoded = modules["decoder"](torch.from_numpy(x)).detach()
    assert (from_x(decoded, own.facts) == own.draw([5, 6], prompts=asked).images).mean() > 0.999


@pytest.fixture
def genflow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trained: tuple[Store, Artifact]
) -> Command:
    """Runs a command on the store of `trained`: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("GENFLOW_STORE", str(trained[0].root))
    return in_this_process(monkeypatch, capsys)


@pytest.fixture(scope="module")
def exported(trained: tuple[Store, Artifact], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The export of the run, and the id of latents by its vae."""
    store, run = trained
    out = tmp_path_factory.mktemp("export") / "own sd3"
    export_form(run, Engine.load(run), "diffusers", out)
    return out, encoded(store, task(store, str(out))).id


def text_encoder(store: Store, run: Artifact) -> str:
    encoder: str = store.find("texts", run.meta["texts"]).meta["encoder"]
    return encoder


def start(folder: Path, **data: str) -> Recipe:
    """The recipe of a training that starts from a folder."""
    return parse({"family": {"kind": "flow_matching"}, "init": str(folder), "data": {"name": "colours", **data}})


def test_a_folder_becomes_a_run_that_draws_the_same(
    trained: tuple[Store, Artifact], exported: tuple[Path, str], genflow: Command
) -> None:
    """It is made once, a dry run names it, and a training takes its net and its weights from it."""
    (store, run), (folder, latents) = trained, exported
    texts, count = run.meta["texts"], len(store.names("runs"))
    words = ("train", "flow_matching", "--latents", latents, "--text", texts, "--init", str(folder), "--dry-run")
    code, out, _ = genflow(*words, "--json")
    assert (code, [stage["job"] for stage in json.loads(out)["stages"]]) == (0, ["import"])
    assert len(store.names("runs")) == count
    asked = start(folder, latents=latents, text=texts)
    planned, missing = starting.find(store, asked)
    assert missing == ""
    assert starting.find(store, asked, dry_run=True) == (planned, "")
    assert len(store.names("runs")) == count + 1
    made = store.find("runs", planned.init)
    assert made.name.startswith("own-sd3-")
    prompts = ["a red square, number 2", ""]
    drawn = [
        Engine.load(each).draw([1, 2], prompts=prompts, sampler="euler", guidance=3.0).images.astype(int)
        for each in (run, made)
    ]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
    assert drawn[0].std() > 5
    code, out, _ = genflow(*words, "--json")
    assert (code, [stage["job"] for stage in json.loads(out)["stages"]]) == (0, ["train"])
    plan = runs.plan(store, planned)
    runs.create_folder(store, plan)
    meta = {"family": "flow_matching", "init": made.id, "latents": latents}
    row = {"run": store.finalize("runs", plan.id, name=plan.name, meta=meta).id, "dataset": plan.dataset.id}
    lines = [line for line in commands(store, [{**row, "evaluate": {}}]) if line.startswith("genflow train flow")]
    assert len(lines) == 1  # the folder's run is no training
    assert f"--text {text_encoder(store, run)} --init '{folder}'" in lines[0]
    theirs = Engine.load(made).family.state_dict()
    first = runs.initial_family(store, plan.recipe, plan.facts).state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in theirs.items())


def test_data_that_do_not_fit_a_folder_are_rejected(
    trained: tuple[Store, Artifact], exported: tuple[Path, str], tmp_path: Path
) -> None:
    """One line names the folder and the artifact, and the hint makes one that fits; no run is made."""
    (store, run), (folder, again) = trained, exported
    texts, count = run.meta["texts"], len(store.names("runs"))
    others = embedded(store, text_folders.write(tmp_path / "clip", text_folders.CLIP)).id
    encode = f"genflow encode colours --autoencoder {folder}"
    cases = [
        ({"text": texts}, "learned latents, and --latents names none", f"{encode}, then add --latents latest"),
        (
            {"text": texts, "latents": run.meta["latents"]},
            "the latents colours-.* are by autoencoder-colours-.*, and .*own sd3 has another vae",
            encode,
        ),
        ({"latents": again}, "reads captions, and --text names no text encoder", "add --text ENCODER"),
        (
            {"latents": again, "text": others},
            "reads tokens of 24 and pooled vectors of 24 numbers, and colours-.* have 16 and 16",
            "add --text ENCODER",
        ),
    ]
    for data, message, hint in cases:
        with pytest.raises(UsageError, match=message) as caught:
            starting.find(store, start(folder, **data))
        assert caught.value.hint.startswith(hint)
        assert "\n" not in caught.value.message + caught.value.hint
    assert len(store.names("runs")) == count


def test_a_folder_that_does_not_exist_is_one_line(genflow: Command, trained: tuple[Store, Artifact]) -> None:
    """So is a folder of something else; a name without a slash is that of a run."""
    made = trained[1].meta
    words = ("train", "flow_matching", "--latents", made["latents"], "--text", made["texts"], "--dry-run", "--init")
    for name, message in (
        ("/nowhere/sd3", "/nowhere/sd3 is no folder on this machine"),
        ("/", "/ has no transformer/config.json"),
        ("nowhere", "no run 'nowhere'"),
    ):
        code, _, err = genflow(*words, name)
        assert code == 2
        assert message in err


def test_a_whole_pipeline_of_diffusers_is_the_start(
    trained: tuple[Store, Artifact], exported: tuple[Path, str], tmp_path: Path
) -> None:
    """With its own text encoders, autoencoder, shift and positions; the net reads text as the encoders give it."""
    diffusers = pytest.importorskip("diffusers")
    (store, _), (folder, _) = trained, exported
    home = tmp_path / "sd3"
    shutil.copytree(folder / "vae", home / "vae")
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        text_folders.write(home / name, text_folders.T5 if name[-1] == "3" else text_folders.CLIP, projection=True)
    (home / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}', encoding="utf-8")
    theirs = shaken(diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=3, out_channels=3, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=40, caption_projection_dim=16, pooled_projection_dim=24,
        pos_embed_max_size=24,
    ), 0.1).eval()  # fmt: skip
    theirs.save_pretrained(home / "transformer")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(home / "scheduler")
    made = {"latents": encoded(store, task(store, str(home))).id, "text": embedded(store, home).id}
    recipe, _ = starting.find(store, start(home, **made))
    own = Engine.load(store.find("runs", recipe.init))
    assert own.options["shift"] == 3.0
    assert own.recipe.net["base"] == 8
    assert not own.recipe.net["normalize"]
    assert own.prompts is not None
    text, x, t = own.prompts.text(["a red square"]), torch.randn(1, 3, 8, 8), torch.tensor([300.0])
    with torch.no_grad():
        expected = theirs(x, text.tokens * text.mask[..., None], text.pooled, t).sample
        torch.testing.assert_close(own.family.net(x, t, text), expected, atol=1e-5, rtol=1e-5)  # type: ignore[operator]
    assert own.draw([1], prompts=["a red square"], steps=2).images.shape == (1, 16, 16, 3)
