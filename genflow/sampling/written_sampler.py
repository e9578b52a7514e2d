"""The Python files of an export: rendered from templates, and compared with the engine before they are written.

    sampler.py.j2                       the sampler, which the other two include
    sample.py.j2, pipeline.py.j2        a script, and a pipeline of diffusers
    programs.py.j2                      the component of that pipeline
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from torch import Tensor, nn

from genflow import build
from genflow.errors import UsageError
from genflow.families.base import Exported
from genflow.maths.rng import SampleRng
from genflow.sampling.engine import Engine

TEMPLATES = Path(__file__).parent / "templates"
TOLERANCE = 1e-3  # of x in [-1, 1]; the rounding of nets with random weights is about 1e-5
SEEDS = (0, 1)  # of the samples that are compared


def render(
    template: str, run: str, engine: Engine, exported: Exported, programs: list[str], onnx: bool = False
) -> str:
    """A Python file of an export, from its template."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, trim_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    facts = engine.facts
    values = {
        "run": run, "onnx": onnx, "device": engine.device, "loop": exported.loop, "programs": programs,
        "noise": list(engine.family.noise_shape), "classes": list(facts.class_names), "points": facts.is_points,
        "captions": engine.prompts is not None, "latents": engine.autoencoder is not None, "scale": facts.scale,
        "levels": facts.levels or 0, "columns": facts.classes if 1 < facts.classes <= 20 else 0, "shape": facts.shape,
    }  # fmt: skip
    return environment.get_template(template).render(values | exported.values)


def written(
    run: str, engine: Engine, exported: Exported, modules: Mapping[str, nn.Module]
) -> Callable[..., np.ndarray]:
    """The function `sample` of the rendered files, with modules in the place of the programs.

    Returns:
        sample(noise, condition, nothing, normal) -> x; noise is an array (N, ...), the conditions are lists of arrays,
        and normal() draws further noise.
    """
    space: dict[str, Any] = {"np": np, "math": math}
    exec(render("sampler.py.j2", run, engine, exported, list(modules)), space)

    def of(module: nn.Module) -> Callable[..., Any]:
        def call(*arrays: np.ndarray) -> Any:
            single = (a.astype(np.float32) if a.dtype == np.float64 else a for a in arrays)
            with torch.no_grad():
                out = module(*(torch.from_numpy(a).to(engine.device) for a in single))
            return [each.cpu().numpy() for each in out] if isinstance(out, tuple) else out.cpu().numpy()

        return call

    nets = {name: of(module) for name, module in modules.items()}
    return lambda *args: space["sample"](nets, *args)


def verify(run: str, engine: Engine, exported: Exported, modules: Mapping[str, nn.Module]) -> None:
    """Draw a few samples with the written sampler and with the family, and compare them.

    Raises:
        UsageError: they differ.
    """
    family, facts = engine.family, engine.family.facts
    if exported.loop == "none" or exported.note:  # what the note names differs by design
        return
    rng, other = (SampleRng(list(SEEDS), "sample") for _ in range(2))
    shape, rows = (len(SEEDS), *family.noise_shape), len(SEEDS)
    label = engine.condition(np.full(rows, facts.classes))
    nothing = [np.full(rows, facts.classes)] if facts.classes else []
    if not isinstance(label, Tensor):
        nothing = [part.float().cpu().numpy() if part.is_floating_point() else part.cpu().numpy()
                   for part in (label.tokens, label.mask, label.pooled)]  # fmt: skip
    x = written(run, engine, exported, modules)(
        rng.normal(shape).numpy(), nothing, nothing, lambda: rng.normal(shape).numpy()
    )  # fmt: skip
    with torch.no_grad():
        noise = other.normal(shape).to(engine.device)
        ours = family.sample(noise, label, other.on(engine.device), **build.sample_options(family, engine.options)).x
    apart = np.abs(x - ours.float().cpu().numpy())
    if not (apart <= TOLERANCE * (1 + np.abs(x))).all():
        raise UsageError(
            f"run {run} cannot be exported: the sampler that was written differs from the run's by {apart.max():.2g}",
            "use --to safetensors",
        )
