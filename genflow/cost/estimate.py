"""Images per second, hours and memory of a training on GPUs, from the operations of one step and published limits.

Each operation takes the longer of two times: its arithmetic at a share of the GPU's peak, and its bytes at a share of
the memory's bandwidth (the roofline). A step takes at least as long as the host needs to start its operations, and the
sum of gradients over the GPUs is hidden as far as the backward pass lasts. All shares are assumptions, and are printed.

References:
    Roofline: An Insightful Visual Performance Model (Williams, Waterman, Patterson, 2009)
    Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations (Patarasuk, Yuan, 2009), for the ring
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from genflow.cost.gpus import GPUS, Gpu
from genflow.cost.step import WORD, Operation, Work, measure
from genflow.errors import UsageError
from genflow.recipe.schema import Recipe
from genflow.specs import DataSpec

ARITHMETIC = 0.5  # reached share of the peak, in a product that is large enough
BANDWIDTH = 0.8  # reached share of the memory's bandwidth
START_S = 8e-6  # the host's time to start one operation, with autograd
NODE_GPUS = 8  # of one node
NETWORK = 25e9  # bytes per second and GPU between nodes: 200 Gbit/s
LINK = 0.7  # reached share of a link's or the network's bandwidth
CONTEXT = 1e9  # bytes that CUDA and its libraries take
FRAGMENTS = 1.1  # memory that the allocator holds, relative to the memory in use
BACKWARD = 2 / 3  # share of the step that is the backward pass


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker, by their use."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float

    @property
    def total(self) -> float:
        """With what the allocator and CUDA take."""
        used = self.weights + self.gradients + self.optimizer + self.average + self.activations
        return FRAGMENTS * used + CONTEXT


@dataclass(frozen=True)
class Speed:
    """The time of a training on GPUs of one kind.

    Args:
        gpu: the kind.
        step_s: seconds per step.
        images_per_second: of all GPUs.
        hours: of the whole budget.
        images: seen in the budget.
        of_peak: the reached share of the peak in bfloat16 (model FLOPs utilization), or in TF32.
        limit: what takes the most time: arithmetic, memory, starting (of operations) or network.
        fits: whether the memory of a worker suffices.
    """

    gpu: Gpu
    step_s: float
    images_per_second: float
    hours: float
    images: float
    of_peak: float
    limit: str
    fits: bool


@dataclass(frozen=True)
class Cost:
    """What a training costs.

    Args:
        recipe: resolved.
        facts: of what the family learns.
        work: of one worker's step.
        gpus: the number of workers, with a GPU each.
        accumulate: micro-batches per step.
        bf16: whether products are in bfloat16.
        memory: of one worker.
        speeds: on each kind of GPU.
    """

    recipe: Recipe
    facts: DataSpec
    work: Work
    gpus: int
    accumulate: int
    bf16: bool
    memory: Memory
    speeds: tuple[Speed, ...]

    @property
    def flops_per_image(self) -> float:
        """Floating-point operations of forward and backward, of all players, per picture."""
        return self.work.flops / self.work.rows


def estimate(
    recipe: Recipe, facts: DataSpec, *, gpus: int = 1, init: Recipe | None = None, kinds: tuple[Gpu, ...] = ()
) -> Cost:
    """Estimate the cost of a resolved recipe.

    Args:
        recipe: resolved.
        facts: of what the family learns.
        gpus: workers, with a GPU each.
        init: the resolved recipe of the run that it starts from, if any.
        kinds: of GPU; none: all in `gpus.GPUS`.

    Raises:
        UsageError: the batch is smaller than the number of GPUs.
    """
    train = recipe.train
    if train.batch < gpus:
        raise UsageError(f"train.batch={train.batch} cannot be shared by {gpus} GPUs", f"--set train.batch={gpus}")
    accumulate = min(train.accumulate, train.batch // gpus)
    bf16 = train.precision != "fp32"
    work = measure(recipe, facts, math.ceil(train.batch / gpus / accumulate), init, bf16=bf16)
    shards = gpus if recipe.cluster.strategy == "fsdp" else 1
    stored = WORD * work.parameters
    memory = Memory(
        stored / shards, work.gradient_bytes / shards, work.optimizer_bytes / shards, stored / shards,
        max(0, work.peak_bytes - work.gradient_bytes),
    )  # fmt: skip
    speeds = tuple(_speed(recipe, work, gpu, gpus, accumulate, bf16, memory) for gpu in kinds or GPUS.values())
    return Cost(recipe, facts, work, gpus, accumulate, bf16, memory, speeds)


def _speed(
    recipe: Recipe, work: Work, gpu: Gpu, gpus: int, accumulate: int, bf16: bool, memory: Memory
) -> Speed:  # fmt: skip
    micro, update = seconds_of(work.micro, gpu), seconds_of(work.update, gpu)
    parts = {name: accumulate * micro[name] + update[name] for name in ("arithmetic", "memory")}
    busy = accumulate * micro["all"] + update["all"]
    starting = START_S * (accumulate * sum(work.micro.values()) + sum(work.update.values()))
    computed = max(busy, starting)
    exchanged = exchange_s(work, gpu, gpus, sharded=recipe.cluster.strategy == "fsdp")
    last = max(micro["all"], START_S * sum(work.micro.values()))  # the sum of gradients follows the last micro-batch
    waited = max(0.0, exchanged - BACKWARD * last)
    step = computed + waited
    limit = max(parts, key=lambda name: parts[name])
    limit = "network" if waited > computed else "starting" if starting > busy else limit
    train = recipe.train
    limits = [train.steps * step, *(60 * end for end in (train.minutes,) if end)]
    seconds = min(limits)
    flops = work.flops * accumulate * gpus
    peak = gpus * (gpu.bf16 if bf16 else gpu.tf32)
    images = train.batch * seconds / step
    fits = memory.total <= gpu.memory
    return Speed(gpu, step, train.batch / step, seconds / 3600, images, flops / step / peak, limit, fits)


def seconds_of(operations: Counter[Operation], gpu: Gpu) -> dict[str, float]:
    """The seconds of operations one after another, and of them those that arithmetic or memory limits."""
    found = {"arithmetic": 0.0, "memory": 0.0}
    for operation, count in operations.items():
        arithmetic = operation.flops / (ARITHMETIC * (gpu.bf16 if operation.half else gpu.tf32))
        moving = operation.bytes / (BANDWIDTH * gpu.bandwidth)
        found["arithmetic" if arithmetic > moving else "memory"] += count * max(arithmetic, moving)
    return {**found, "all": sum(found.values())}


def exchange_s(work: Work, gpu: Gpu, gpus: int, *, sharded: bool) -> float:
    """Seconds of summing the gradients in a ring; with shards, also of gathering the weights twice."""
    if gpus == 1:
        return 0.0
    slowest = LINK * (gpu.link if gpus <= NODE_GPUS else min(gpu.link, NETWORK))
    return (3 if sharded else 2) * WORD * work.parameters * (gpus - 1) / gpus / slowest


def assumptions(cost: Cost) -> list[str]:
    """What the numbers assume, as sentences."""
    product = "bfloat16" if cost.bf16 else "float32 (TF32)"
    found = [
        f"products in {product} reach {ARITHMETIC:.0%} of the published peak, and other operations {BANDWIDTH:.0%} of "
        "the memory's bandwidth; operations are not fused",
        f"the host starts an operation in {START_S * 1e6:.0f} µs; batches are ready when they are needed, and "
        "checkpoints take no time",
        f"memory: float32 weights, gradients, optimizer and average, plus {FRAGMENTS - 1:.0%} for the allocator and "
        f"{CONTEXT / 1e9:.0f} GB for CUDA",
    ]
    if cost.gpus > 1:
        found.append(
            f"gradients are summed in a ring at {LINK:.0%} of the link, or of {NETWORK * 8 / 1e9:.0f} Gbit/s per GPU "
            f"between nodes of {NODE_GPUS}, while the backward pass computes"
        )
    return found


def to_json(cost: Cost) -> dict[str, Any]:
    """A `genflow.cost/1` document."""
    train, memory = cost.recipe.train, cost.memory
    parts = {name: getattr(memory, name) for name in ("weights", "gradients", "optimizer", "average", "activations")}
    return {
        "schema": "genflow.cost/1",
        "family": cost.recipe.family["kind"], "net": cost.recipe.net["kind"], "size": cost.recipe.size,
        "shape": list(cost.facts.shape), "parameters": cost.work.parameters,
        "batch": train.batch, "steps": train.steps, "minutes": train.minutes, "gpus": cost.gpus,
        "micro_batch": cost.work.rows, "accumulate": cost.accumulate, "precision": "bf16" if cost.bf16 else "fp32",
        "flops_per_image": cost.flops_per_image,
        "flops_per_step": cost.work.flops * cost.accumulate * cost.gpus,
        "memory_bytes": {**{name: round(value) for name, value in parts.items()}, "total": round(memory.total)},
        "on": [
            {
                "gpu": speed.gpu.name, "memory_bytes": round(speed.gpu.memory), "fits": speed.fits,
                "step_seconds": speed.step_s, "images_per_second": speed.images_per_second, "hours": speed.hours,
                "images": round(speed.images), "of_peak": speed.of_peak, "limit": speed.limit,
            }
            for speed in cost.speeds
        ],
        "assumed": assumptions(cost),
    }  # fmt: skip
