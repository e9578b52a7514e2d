"""Sampling: genflow's engine against diffusers' pipeline on the same weights, and one sample against the bare net."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench.page import Row, Table
from benchmarks.bench.pairs import Turn, ratio, take_turns
from benchmarks.bench.precision import HAS_BFLOAT16
from benchmarks.bench.steps import CLASSES, Genflow
from genflow.maths.rng import SampleRng
from genflow.sampling.diffusers_pipelines import write_pipeline
from genflow.sampling.engine import Engine

SHAPE, BATCHES, STEPS, ROUNDS = (1, 28, 28), (1, 16, 64), 5, 12  # steps of DDIM; turns of each contestant
TRAINED = 3  # steps of training that give the weights
APART = 1, 0.01  # grey levels that a pixel may differ by, and the share of pixels that may differ
NOISE = "diffusers.pipelines.ddim.pipeline_ddim.randn_tensor"
FORMATS = ("fp32", "bf16") if HAS_BFLOAT16 else ("fp32",)
NETS = ("unet2d", "unet", "dit")  # of one sample alone
TEXT = f"""Pictures of 28 x 28 pixels by {STEPS} steps of DDIM on one thread, from the weights of one `ddpm` run with
the net `unet2d`: by the engine, and by the stock `DDIMPipeline` that `genflow export --to diffusers` writes. Both
return arrays. In fp32, from the same noise, {{same}}. **Above 1.00 genflow is faster.**
"""
ALONE = f"""The engine draws one sample, and the bare net is evaluated {STEPS} times on one row: the price of bytes that
do not depend on the other samples of a batch (see [decision 10](decisions/0010-how-samples-are-served.md)). The
ratio is the engine's time to that of the net: **1.00 would cost nothing.**
"""


def tables(rounds: int = ROUNDS) -> Iterator[Table]:
    """Pictures per second, and the cost of one sample alone.

    Args:
        rounds: turns of each contestant.
    """
    engines = {net: trained(net) for net in NETS}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            pipeline = exported(engines["unet2d"], Path(scratch))
    except ImportError as error:
        missing = [f"diffusers ({error.name or error} is not installed)"]
        yield Table("Sampling: the same weights", TEXT.format(same="nothing was compared"), "pictures/s", [], missing)
        return
    text, rows = TEXT.format(same=agreement(engines["unet2d"], pipeline)), []
    for batch in BATCHES:
        turns: dict[str, Turn] = {}
        for number in FORMATS:
            turns[f"genflow {number}"] = _drawing(engines["unet2d"], batch, number)
            turns[f"diffusers {number}"] = _piping(pipeline, batch, number)
        seconds = take_turns(turns, rounds, warm_up=1)
        for number in FORMATS:
            ours, theirs = seconds[f"genflow {number}"], seconds[f"diffusers {number}"]
            name = f"{number}, batch {batch}"
            rows.append(Row(name, "`DDIMPipeline`", ratio(theirs, ours), batch, per_second=True))
    yield Table("Sampling: the same weights", text, "pictures/s", rows)
    rows = []
    for net, engine in engines.items():
        seconds = take_turns({"alone": _drawing(engine, 1, "fp32"), "bare": _evaluations(engine)}, rounds)
        rows.append(Row(f"`{net}`, bare net", "engine, one sample", ratio(seconds["alone"], seconds["bare"]), 1000))
    yield Table("Sampling: one sample alone", ALONE, "ms", rows, heads=("net", "engine"))


def trained(net: str) -> Engine:
    """The engine of a short training of `ddpm`."""
    family: dict[str, Any] = {"kind": "ddpm", "schedule": "cosine", "predict": "v"}
    training = Genflow(SHAPE, 16, family=family, net={"kind": net}, sample={"sampler": "ddim", "steps": STEPS})
    training.steps(TRAINED)
    return Engine(training.family, training.recipe)


def exported(engine: Engine, folder: Path) -> Any:
    """The pipeline that diffusers loads from the export of an engine.

    Raises:
        ImportError: diffusers is not installed.
    """
    from diffusers import DiffusionPipeline

    write_pipeline("bench", engine, folder)
    pipeline: Any = DiffusionPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def agreement(engine: Engine, pipeline: Any) -> str:
    """Compare the pixels of both in fp32, in words.

    Raises:
        AssertionError: they differ by more than `APART`.
    """
    count = 16
    noise = SampleRng(range(count), "sample").normal((count, *SHAPE))
    with patch(NOISE, lambda *_, **__: noise.clone()):
        theirs = pipeline(batch_size=count, num_inference_steps=STEPS, output_type="np").images
    levels = np.floor(theirs * 256).clip(0, 255).astype(int)
    apart = np.abs(levels - engine.draw(range(count), [CLASSES] * count).images.astype(int))
    share = float((apart > 0).mean())
    assert apart.max() <= APART[0], f"a pixel differs by {apart.max()} grey levels"
    assert share <= APART[1], f"{share:.2%} of the pixels differ"
    return f"{share:.2%} of the pixels differ, by one of 256 grey levels"


def _autocast(number: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=number == "bf16")


def _drawing(engine: Engine, batch: int, number: str) -> Turn:
    def draw() -> None:
        with _autocast(number):
            engine.draw(range(batch), [CLASSES] * batch)

    return draw


def _piping(pipeline: Any, batch: int, number: str) -> Turn:
    def draw() -> None:
        with _autocast(number):
            pipeline(batch_size=batch, num_inference_steps=STEPS, output_type="np")

    return draw


def _evaluations(engine: Engine) -> Turn:
    net: Any = engine.family.net
    x, t, label = torch.randn(1, *SHAPE), torch.tensor([400.0]), torch.tensor([CLASSES])

    def evaluate() -> None:
        with torch.no_grad():
            for _ in range(STEPS):
                out: Tensor = net(x, t, label)
        del out

    return evaluate
