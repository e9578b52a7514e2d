"""Write the nets of a run as programs that run without genflow, and the Python file that draws samples with them.

    NAME.pt2 or NAME.onnx    `net`, or the blocks of a normalizing flow; `decoder` of a run on latents
    sample.py                the sampler, with numpy and PyTorch or onnxruntime
    pipeline.py, net/        in the place of sample.py: a pipeline that diffusers loads
    prompts.json, .npz       some captions and their embeddings, for a run that reads captions

A program takes arrays with N rows, for any N, and gives one. `Family.exported` says which programs a family has.
"""

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genflow import build
from genflow.errors import SetupError, UsageError
from genflow.families.base import Call, Exported, Family
from genflow.sampling.engine import Engine
from genflow.sampling.written_sampler import render, verify
from genflow.storage.files import write_atomically
from genflow.system.streams import note
from genflow.text import Label, Text

SUFFIXES = {"torch_export": ".pt2", "onnx": ".onnx"}
CAPTIONS, EMBEDDINGS = "prompts.json", "prompts.npz"
EXAMPLES = 8  # held-out captions whose embeddings are written
PARTS = ("tokens", "mask", "pooled")  # of a caption, in the order of a program's inputs
MOST_BYTES_INSIDE = 1_500_000_000  # of weights inside an .onnx file, which can have 2 GB


@dataclass(frozen=True)
class Program:
    """A module of flat tensors, with inputs of two rows from which it is traced.

    Args:
        module: module(*tensors) -> a tensor with as many rows.
        inputs: by name.
    """

    module: nn.Module
    inputs: dict[str, Tensor]


class _Flat(nn.Module):
    """A `Call` as a module whose condition is flat, too."""

    def __init__(self, owner: nn.Module, call: Call) -> None:
        super().__init__()
        self.owner, self.call = owner, call

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        count = len(self.call.inputs)
        tensors, rest = inputs[:count], inputs[count:]
        each = len(rest) // self.call.conditions
        conditions = [self._condition(tensors[0], rest[i * each : (i + 1) * each]) for i in range(self.call.conditions)]
        return self.call.run(*tensors, *conditions)

    def _condition(self, like: Tensor, rest: Sequence[Tensor]) -> Label:
        if len(rest) == len(PARTS):
            tokens, mask, pooled = rest
            return Text(tokens, mask, pooled)
        return rest[0] if rest else torch.zeros(like.shape[0], dtype=torch.long, device=like.device)


def plan(engine: Engine) -> tuple[Exported, dict[str, Program]]:
    """What an export of a run consists of, and its programs by name."""
    family = engine.family
    exported = family.exported(build.sample_options(family, engine.options))
    found = {name: _program(family, call, engine.device) for name, call in exported.calls.items()}
    if (autoencoder := engine.autoencoder) is not None:
        found["decoder"] = _program(autoencoder, autoencoder.exported({}).calls["decoder"], engine.device)
    return exported, found


def _program(family: Family, call: Call, device: str) -> Program:
    inputs = {name: torch.zeros(2, *shape, device=device) for name, shape in call.inputs.items()}
    facts, condition = family.facts, {}
    if facts.text and not family.is_autoencoder:
        form, rows = facts.text, 2
        parts = (torch.zeros(rows, form.length, form.tokens), torch.ones(rows, form.length) > 0,
                 torch.zeros(rows, form.pooled))  # fmt: skip
        condition = {name: part.to(device) for name, part in zip(PARTS, parts, strict=True)}
    elif facts.classes and not family.is_autoencoder:  # an autoencoder reads no condition
        condition = {"label": torch.zeros(2, dtype=torch.long, device=device)}
    for prefix in ("", "no_")[: call.conditions]:
        inputs |= {prefix + name: part for name, part in condition.items()}
    return Program(_Flat(family, call), inputs)


def traced(program: Program) -> Any:
    """The `torch.export` program, for any number of rows.

    A module that draws random numbers cannot be traced, and neither can one whose steps depend on the data.
    """
    rows = torch.export.Dim("rows", min=1)
    shapes = tuple({0: rows} for _ in program.inputs)
    with torch.no_grad():
        return torch.export.export(
            program.module, tuple(program.inputs.values()), dynamic_shapes=(shapes,), strict=False
        )  # fmt: skip


def write_programs(run: str, engine: Engine, folder: Path, form: str, prompts: Sequence[str] = ()) -> Exported:
    """Write a run's programs and, if the run draws samples, the script.

    Args:
        run: its id, for messages and texts.
        engine: of the run.
        folder: an empty folder; created if it does not exist.
        form: torch_export or onnx.
        prompts: whose embeddings are written, for a run that reads captions; empty: some captions of held-out rows.

    Raises:
        UsageError: the run cannot be traced, or the sampler that is written does not draw its samples;
            or a prompt needs a text encoder that is not on this machine.
        SetupError: a package is not installed.
        OSError: the folder cannot be written.
    """
    exported, programs = _write(run, engine, folder, form, prompts)
    if exported.loop != "none":
        script = render("sample.py.j2", run, engine, exported, programs, onnx=form == "onnx")
        write_atomically(folder / "sample.py", script)
    return exported


def write_pipeline(run: str, engine: Engine, folder: Path, prompts: Sequence[str] = ()) -> Exported:
    """Write a run as a pipeline of diffusers with a Python file of its own; see `write_programs`."""
    exported, programs = _write(run, engine, folder / "net", "torch_export", prompts)
    index = {"_class_name": ["pipeline", "GenflowPipeline"], "net": ["programs", "Programs"]}
    write_atomically(folder / "model_index.json", json.dumps(index, indent=2))
    write_atomically(folder / "pipeline.py", render("pipeline.py.j2", run, engine, exported, programs))
    write_atomically(folder / "net" / "programs.py", render("programs.py.j2", run, engine, exported, programs))
    return exported


def _write(run: str, engine: Engine, folder: Path, form: str, prompts: Sequence[str]) -> tuple[Exported, list[str]]:
    """Write a run's programs, and the embeddings of captions; what `plan` says, and the programs' names."""
    if form == "onnx":
        _require_onnx()
    exported, programs = plan(engine)
    verify(run, engine, exported, {name: program.module for name, program in programs.items()})
    for number, (name, program) in enumerate(programs.items(), 1):
        note(f"export   {number} of {len(programs)}: {name}{SUFFIXES[form]}")
        try:
            made = traced(program)
            WRITERS[form](made, program, folder / f"{name}{SUFFIXES[form]}")
        except OSError:
            raise
        except Exception as error:  # tracing may raise anything
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"run {run} cannot be traced for {form}: {first}", "use --to safetensors") from error
    if engine.prompts is not None:
        write_prompts(engine, folder, prompts)
    return exported, list(programs)


def _write_torch(made: Any, program: Program, file: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        torch.export.save(made, Path(scratch) / file.name)
        write_atomically(file, (Path(scratch) / file.name).read_bytes())


def _write_onnx(made: Any, program: Program, file: Path) -> None:
    size = sum(p.numel() * p.element_size() for p in program.module.parameters())
    with tempfile.TemporaryDirectory() as scratch, _quiet("torch.onnx"):
        torch.onnx.export(
            made, (), Path(scratch) / file.name, dynamo=True, verbose=False, input_names=list(program.inputs),
            external_data=size > MOST_BYTES_INSIDE,
        )  # fmt: skip
        for made_file in sorted(Path(scratch).iterdir()):
            write_atomically(file.with_name(made_file.name), made_file.read_bytes())


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Hide what a library reports about packages that an export does not need."""
    found = logging.getLogger(logger)
    level = found.level
    found.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        found.setLevel(level)


WRITERS: dict[str, Callable[[Any, Program, Path], None]] = {"torch_export": _write_torch, "onnx": _write_onnx}


def _require_onnx() -> None:
    """Check that the packages that write ONNX are installed.

    Raises:
        SetupError: one is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        message = f"--to onnx needs the package {error.name}, which is not installed"
        raise SetupError(message, 'pip install "genflow-ray[onnx]"') from error


def write_prompts(engine: Engine, folder: Path, prompts: Sequence[str]) -> None:
    """Write captions and their embeddings; the first caption is the empty one."""
    assert engine.prompts is not None
    words = prompts or engine.prompts.examples(min(EXAMPLES, len(engine.prompts.captions)))
    captions = list(dict.fromkeys(["", *words]))
    text = engine.prompts.text(captions)
    arrays = {name: getattr(text, name).cpu() for name in PARTS}
    arrays = {name: (part.float() if part.dtype.is_floating_point else part).numpy() for name, part in arrays.items()}
    with tempfile.TemporaryFile() as file:
        np.savez(file, **arrays)
        file.seek(0)
        write_atomically(folder / EMBEDDINGS, file.read())
    write_atomically(folder / CAPTIONS, json.dumps(captions, ensure_ascii=False, indent=1))
