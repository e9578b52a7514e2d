"""Export a run as a folder that other programs read.

    safetensors    the averaged weights, the recipe, the facts, their manifest and a model card; `Engine.from_folder`
                   compares the files with the manifest and loads them
    diffusers      `diffusers` loads it: a pipeline, its parts, or the `AutoencoderKL` of an autoencoder; only for nets
                   that diffusers has (see `diffusers_pipelines`)
    torch_export   one program that maps noise and label to samples and needs only PyTorch; only for one-pass samplers
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genflow.data.shards import FACTS
from genflow.errors import UsageError, similar
from genflow.families.base import Family
from genflow.sampling.diffusers_folder import write_autoencoder
from genflow.sampling.diffusers_pipelines import write_pipeline
from genflow.sampling.engine import AUTOENCODER, READ, RECIPE, TEXT, Engine
from genflow.sampling.files import output_error
from genflow.storage.files import write_atomically
from genflow.storage.manifest import MANIFEST, describe
from genflow.storage.store import Artifact


def write(run: Artifact, engine: Engine, form: str, folder: Path, prompts: Sequence[str] = ()) -> None:
    """Export a run and its newest sample grid.

    Args:
        run: the run.
        engine: of the run, with its averaged weights.
        form: one of `FORMS`.
        folder: an empty folder; created if it does not exist.
        prompts: whose embeddings are exported with a run that reads captions, to diffusers; empty: held-out captions.

    Raises:
        UsageError: the form is unknown, the folder is not empty, the run's family or net does not fit the form, or
            there are prompts for an export that holds no embeddings.
        ResourceError: the disk is full or broken.
        SetupError: the folder cannot be written.
    """
    check_form(form)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", "choose another --out")
    if prompts and (form != "diffusers" or engine.prompts is None):
        what = f"an export to {form}" if form != "diffusers" else "the export of a run that reads no captions"
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


def forms(family: type[Family]) -> list[str]:
    """The forms to which a family's runs can be exported; the run's net may exclude some."""
    can = {
        "diffusers": family.stock_scheduler is not Family.stock_scheduler or family.is_autoencoder,
        "torch_export": family.steps.startswith("1") and not family.is_autoencoder,  # it draws no pictures
    }
    return [form for form in FORMS if can.get(form, True)]


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
    else:
        use, rest = write_pipeline(run.id, engine, folder, prompts)
    write_atomically(folder / "README.md", _card(run.id, engine, "diffusers", use, rest))


def _torch_export(run: Artifact, engine: Engine, folder: Path, prompts: Sequence[str]) -> None:
    """Save the sampler as one program, for any number of rows."""
    import torch

    one = {**engine.options, **({"steps": 1} if "steps" in engine.options else {})}
    if "torch_export" not in forms(type(engine.family)):
        own = type(engine.family)
        why = "it draws no pictures of its own" if own.is_autoencoder else f"{own.title} samples in many steps"
        raise UsageError(
            f"run {run.id} cannot be exported to torch_export: {why}",
            "vae, gan and consistency sample in one step; --to safetensors exports every run",
        )
    if engine.family.facts.text:
        raise UsageError(
            f"run {run.id} cannot be exported to torch_export: it reads captions, and the program would take labels",
            "use --to safetensors",
        )
    try:
        program = traced(engine.family, one, engine.autoencoder, engine.device)
    except Exception as error:  # tracing may raise anything
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"run {run.id} cannot be traced by torch.export: {first}", "use --to safetensors") from error
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        torch.export.save(program, Path(scratch) / "sample.pt2")
        write_atomically(folder / "sample.pt2", (Path(scratch) / "sample.pt2").read_bytes())
    write_atomically(folder / FACTS, json.dumps(engine.facts.to_json(), indent=1))
    use = f"""import torch

sample = torch.export.load("sample.pt2").module()
noise = torch.randn(16, {", ".join(map(str, engine.family.noise_shape))})
x = sample(noise, torch.full((16,), {engine.facts.classes}))  # (16, C, H, W) in [-1, 1]; the last label is "none\""""
    write_atomically(folder / "README.md", _card(run.id, engine, "pytorch", use, "It needs only PyTorch."))


def traced(
    family: Family, options: dict[str, Any], autoencoder: Family | None = None, device: str = "cpu"
) -> Any:  # fmt: skip
    """A `torch.export` program: noise (B, ...) and label (B,) in, pictures x (B, C, H, W) out, for any B.

    The program runs on the family's device. A sampler that draws random numbers cannot be traced, and neither can one
    whose steps depend on the data.
    """
    import torch
    from torch import Tensor, nn

    from genflow.maths.rng import SampleRng

    class OnePass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.family, self.autoencoder = family, autoencoder

        def forward(self, noise: Tensor, label: Tensor) -> Tensor:
            x = self.family.sample(noise, label, SampleRng([], "none"), **options).x
            return self.autoencoder.decode(x, label, SampleRng([], "none")) if self.autoencoder else x

    rows = torch.export.Dim("rows", min=1)
    like = torch.zeros(2, *family.noise_shape, device=device), torch.zeros(2, dtype=torch.long, device=device)
    return torch.export.export(OnePass(), like, dynamic_shapes=({0: rows}, {0: rows}), strict=False)


FORMS: dict[str, Callable[[Artifact, Engine, Path, Sequence[str]], None]] = {
    "safetensors": _safetensors, "diffusers": _diffusers, "torch_export": _torch_export,
}  # fmt: skip


USE_OF_AUTOENCODER = """from diffusers import AutoencoderKL

autoencoder = AutoencoderKL.from_pretrained(".")
latents = autoencoder.encode(x).latent_dist.mode()  # x (B, C, H, W) in [-1, 1]
x = autoencoder.decode(latents).sample"""
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
