"""Export a run as a folder that other programs read.

    safetensors    the averaged weights, the recipe, the facts, their manifest and a model card; `Engine.from_folder`
                   compares the files with the manifest and loads them
    diffusers      a stock pipeline, its parts, or the `AutoencoderKL` of an autoencoder (see `diffusers_pipelines`);
                   for other nets and families a pipeline with a Python file of its own (see `programs`)
    torch_export   the nets as programs that need only PyTorch, and `sample.py`, which draws samples with them
    onnx           the same with onnxruntime, without PyTorch
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from genflow.data.shard_format import FACTS
from genflow.errors import UsageError, similar
from genflow.families.base import Family
from genflow.sampling.diffusers_folder import write_autoencoder
from genflow.sampling.diffusers_pipelines import misfits, write_pipeline
from genflow.sampling.engine import AUTOENCODER, READ, RECIPE, TEXT, Engine
from genflow.sampling.files import output_error
from genflow.sampling.programs import write_pipeline as write_custom_pipeline
from genflow.sampling.programs import write_programs
from genflow.storage.files import write_atomically
from genflow.storage.manifest import MANIFEST, describe
from genflow.storage.store import Artifact
from genflow.system.streams import note


def write(run: Artifact, engine: Engine, form: str, folder: Path, prompts: Sequence[str] = ()) -> None:
    """Export a run and its newest sample grid.

    Args:
        run: the run.
        engine: of the run, with its averaged weights.
        form: one of `FORMS`.
        folder: an empty folder; created if it does not exist.
        prompts: whose embeddings are exported with a run that reads captions; empty: held-out captions.

    Raises:
        UsageError: the form is unknown, the folder is not empty, the run's family or net does not fit the form, or
            there are prompts for an export that holds no embeddings.
        ResourceError: the disk is full or broken.
        SetupError: the folder cannot be written.
    """
    check_form(form)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", "choose another --out")
    if prompts and (form == "safetensors" or engine.prompts is None):
        what = f"an export to {form}" if form == "safetensors" else "the export of a run that reads no captions"
        raise UsageError(f"--prompt: {what} holds no embeddings of prompts", "omit --prompt")
    try:
        FORMS[form](run, engine, folder, prompts)
        if grids := run.files("samples/*.png"):
            shutil.copyfile(run.file(grids[-1]), folder / "samples.png")
        if form == "safetensors":  # the form that genflow reads; the model card may be edited
            manifest = describe(folder, "exports", run.id, name=run.name, only=READ.__contains__)
            write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))
    except OSError as error:
        raise output_error(error, folder) from error


def check_form(form: str) -> None:
    """Raise UsageError if there is no such form, and name a similar one."""
    if form not in FORMS:
        raise UsageError(f"cannot export to {form!r}{similar(form, list(FORMS))}", f"use --to {', '.join(FORMS)}")


def forms(family: type[Family]) -> dict[str, str]:
    """The forms to which a family's runs can be exported, and in words what is written."""
    found = {form: form for form in FORMS}
    stock = family.stock_scheduler is not Family.stock_scheduler
    found["diffusers"] = "AutoencoderKL" if family.is_autoencoder else f"{'stock or ' * stock}custom diffusers"
    return found


def _safetensors(run: Artifact, engine: Engine, folder: Path, prompts: Sequence[str]) -> None:
    from safetensors.torch import save

    state = {k: v.detach().cpu().contiguous() for k, v in engine.family.state_dict().items()}
    metadata = {"format": "pt", "genflow.run": run.id, "genflow.step": str(engine.step)}
    write_atomically(folder / "weights.safetensors", save(state, metadata))
    for name in (RECIPE, FACTS, *run.files(f"{AUTOENCODER}/*"), *run.files(f"{TEXT}/*")):
        write_atomically(folder / name, run.file(name).read_bytes())
    write_atomically(folder / "state.json", json.dumps({"step": engine.step, "run": run.id}))
    use = """from pathlib import Path
from genflow.sampling.engine import Engine

engine = Engine.from_folder(Path("."))
images = engine.draw(seeds=range(16)).images  # (16, H, W, C) uint8"""
    rest = """`weights.safetensors` has the averaged weights, `recipe.yaml` the complete configuration, `facts.json` the
facts of what it learned. `autoencoder/`, if it exists, turns its latents into pictures, and `text/` has the embeddings
of some captions."""
    write_atomically(folder / "README.md", _card(run.id, engine, "genflow", use, rest))


def _diffusers(run: Artifact, engine: Engine, folder: Path, prompts: Sequence[str]) -> None:
    """Write a pipeline of the run's net and the scheduler of its path, or an `AutoencoderKL`."""
    if engine.family.is_autoencoder:
        write_autoencoder(engine.family, folder)
        use, rest = USE_OF_AUTOENCODER, ABOUT_LATENTS
    elif (reason := misfits(engine))[0]:
        use, rest = _custom_pipeline(run.id, engine, folder, prompts, *reason)
    else:
        use, rest = write_pipeline(run.id, engine, folder, prompts)
    write_atomically(folder / "README.md", _card(run.id, engine, "diffusers", use, rest))


def _custom_pipeline(
    run: str, engine: Engine, folder: Path, prompts: Sequence[str], problems: list[str], cures: list[str]
) -> tuple[str, str]:
    """Write a pipeline with a Python file of its own; the code that uses it, and what a reader must know."""
    why = f"{'; '.join(problems)}: pipeline.py in the folder is its pipeline"
    note(f"export   {why}")
    exported = write_custom_pipeline(run, engine, folder, prompts)
    condition = ", prompt=pipeline.net.captions[1]" if engine.prompts else ", class_labels=0"
    use = f"""from diffusers import DiffusionPipeline

folder = "."
pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
images = pipeline(batch_size=16{condition if engine.prompts or engine.facts.classes else ""}).images"""
    cure = ", then ".join(cures)
    rest = f"""It needs diffusers and PyTorch. {why[0].upper()}{why[1:]},
which `trust_remote_code` runs. `net/` has the nets as programs of `torch.export`. For a stock pipeline, {cure}.
{exported.note}"""
    return use, rest


def _programs(form: str, run: Artifact, engine: Engine, folder: Path, prompts: Sequence[str]) -> None:
    """Write the nets as programs, and the script that draws samples with them."""
    exported = write_programs(run.id, engine, folder, form, prompts)
    write_atomically(folder / FACTS, json.dumps(engine.facts.to_json(), indent=1))
    needs = "numpy and onnxruntime" if form == "onnx" else "numpy and PyTorch"
    rest = f"It needs {needs}. `sample.py` has the sampler; its functions can be imported. {exported.note}"
    if exported.loop == "none":
        use, rest = USE_OF_PROGRAMS[form], ABOUT_LATENTS
    else:
        use = _use_of_sample(engine)
    write_atomically(folder / "README.md", _card(run.id, engine, "onnx" if form == "onnx" else "pytorch", use, rest))


def _use_of_sample(engine: Engine) -> str:
    condition, classes = "condition = []", engine.facts.classes
    if engine.prompts is not None:
        condition = 'stored = np.load("prompts.npz")  # row 0 is the empty caption of prompts.json\n'
        condition += 'condition = [stored[name][[1] * 16] for name in ("tokens", "mask", "pooled")]'
    elif classes:
        condition = f"condition = [np.full(16, {classes})]  # a class by number; {classes}: none"
    return USE_OF_SAMPLE.format(condition=condition, decoded='\nx = nets["decoder"](x)' if engine.autoencoder else "")


FORMS: dict[str, Callable[[Artifact, Engine, Path, Sequence[str]], None]] = {
    "safetensors": _safetensors, "diffusers": _diffusers,
    "torch_export": partial(_programs, "torch_export"), "onnx": partial(_programs, "onnx"),
}  # fmt: skip


USE_OF_AUTOENCODER = """from diffusers import AutoencoderKL

autoencoder = AutoencoderKL.from_pretrained(".")
latents = autoencoder.encode(x).latent_dist.mode()  # x (B, C, H, W) in [-1, 1]
x = autoencoder.decode(latents).sample"""
USE_OF_SAMPLE = """# the same from a shell: python sample.py -n 16 --seed 0
import numpy as np
import sample

def normal():
    return np.random.standard_normal((16, *sample.NOISE)).astype(np.float32)

nets = {{name: sample.load(name) for name in sample.PROGRAMS}}
{condition}
x = sample.sample(nets, normal(), condition, condition, normal){decoded}"""
USE_OF_PROGRAMS = {
    "torch_export": """import torch

encoder = torch.export.load("encoder.pt2").module()
decoder = torch.export.load("decoder.pt2").module()
with torch.no_grad():
    latents = encoder(x)  # x (N, C, H, W) in [-1, 1]
    x = decoder(latents)""",
    "onnx": """import onnxruntime

encoder, decoder = (onnxruntime.InferenceSession(f"{name}.onnx") for name in ("encoder", "decoder"))
(latents,) = encoder.run(None, {"x": x})  # x (N, C, H, W) float32 in [-1, 1]
(x,) = decoder.run(None, {"z": latents})""",
}
ABOUT_LATENTS = "Each channel of the latents has mean 0 and deviation 1 over the training data: scaling_factor is 1."


def _card(run: str, engine: Engine, library: str, use: str, rest: str) -> str:
    facts = engine.facts
    tag = "text-to-image" if engine.family.facts.text else "unconditional-image-generation"
    tag = "image-feature-extraction" if engine.family.is_autoencoder else tag
    condition = "captions" if engine.family.facts.text else f"{facts.classes or 'no'} classes"
    return f"""---
library_name: {library}
pipeline_tag: {tag}
---
# {run}

{type(engine.family).title}, net {engine.recipe.net["kind"]}, {engine.step:,} steps, on data of shape {facts.shape}
(fingerprint {facts.fingerprint[:16]}), {condition}.

```python
{use}
```

{rest}
"""
