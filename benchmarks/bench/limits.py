"""Where the CPU time of a training step is, and how near the step is to the rate of a large matrix product."""

import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench.page import Listing
from benchmarks.bench.precision import FORMAT, HAS_BFLOAT16, autocast
from benchmarks.bench.steps import CLASSES, pictures
from genflow import build
from genflow.batch import Batch
from genflow.maths.rng import BatchRng
from genflow.recipe.schema import Recipe
from genflow.specs import DataSpec
from genflow.training.optim import optimizers_of

SIDE, TIMES = 2048, 5  # of the matrices whose product gives the rate; repetitions
PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::linear")
HEADS = ("net", "ms", "convolutions", "products", "other operations", "optimizer", "GFLOP", "limit, ms", "share")
TEXT = """Loss, backward and optimizer of genflow's steps on Fashion-MNIST, by operation. The limit is the time of the
same multiplications at the rate of a product of two matrices of {side:,} x {side:,}: {rate:.0f} GFLOP/s in {format}.
"""


def listing(recipes: dict[str, Recipe], shape: tuple[int, int, int], batch: int) -> Listing:
    """A row for each of genflow's contestants.

    Args:
        recipes: resolved, by name.
        shape: of a picture.
        batch: rows of a step.
    """
    rate = products_per_second()
    rows = [(name, *_row(recipe, shape, batch, rate)) for name, recipe in recipes.items()]
    text = TEXT.format(side=SIDE, rate=rate / 1e9, format=FORMAT)
    return Listing(f"A training step in {FORMAT}: how near it is to the limit", text, HEADS, rows)


def products_per_second() -> float:
    """Multiplications and additions per second of a large matrix product, on one thread."""
    a = torch.rand(SIDE, SIDE, dtype=torch.bfloat16 if HAS_BFLOAT16 else torch.float32)
    return 2 * SIDE**3 / seconds(lambda: a @ a)


def seconds(work: Callable[[], object]) -> float:
    """The median CPU seconds of some work."""
    found = []
    for _ in range(TIMES + 1):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found[1:])


def _row(recipe: Recipe, shape: tuple[int, int, int], batch: int, rate: float) -> tuple[str, ...]:
    facts = DataSpec(shape, 256, tuple(map(str, range(CLASSES))))
    family = build.family_of(recipe, facts).train()
    optimizers = optimizers_of(family.net, recipe.train).values()
    rows = Batch(*pictures(shape, batch))

    def differentiate() -> None:
        with autocast():
            loss, _ = family.loss("net", rows, BatchRng(0, "loss/net", 0))
        loss.backward()

    def update() -> None:
        for optimizer in optimizers:
            optimizer.step()

    with FlopCounterMode(display=False) as counter:
        differentiate()
        update()
    whole, own = seconds(differentiate), seconds(update)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        differentiate()
    spent = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    convolutions = sum(value for key, value in spent.items() if "convolution" in key)
    products = sum(spent.get(key, 0.0) for key in PRODUCTS)
    parts = [each / sum(spent.values()) * whole for each in (convolutions, products)]
    step, flops = whole + own, counter.get_total_flops()
    shares = [f"{each / step:.0%}" for each in (*parts, whole - sum(parts), own)]
    limit = flops / rate
    return f"{1000 * step:.0f}", *shares, f"{flops / 1e9:.0f}", f"{1000 * limit:.0f}", f"{limit / step:.0%}"
