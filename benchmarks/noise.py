"""Compare the noise of training with torch's generator, in pairs on one thread of this machine's CPU.

    python -m benchmarks.noise [--pairs 41]

Prints, for each shape, the median of the pairs' ratios of CPU time: the counter-based generator over torch's.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch

from genflow.maths.rng import BatchRng

SHAPES = [(64,), (64, 2), (64, 1, 28, 28), (64, 3, 64, 64), (64, 3, 256, 256)]


def ratio(new: Callable[[], object], old: Callable[[], object], pairs: int) -> float:
    """The median over pairs of the CPU time of `new` over that of `old`."""
    return statistics.median(_seconds(new) / _seconds(old) for _ in range(pairs))


def _seconds(use: Callable[[], object]) -> float:
    start = time.process_time_ns()
    use()
    return max(1, time.process_time_ns() - start)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=41)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    print("| rows and numbers | normal | uniform |\n|---|---:|---:|")
    for shape in SHAPES:
        few = max(3, pairs // (1 + math.prod(shape) // 1_000_000))
        rng = BatchRng(0, "benchmark", 0)
        normal = ratio(lambda: rng.normal(shape), lambda: torch.randn(shape, generator=generator), few)  # noqa: B023
        uniform = ratio(lambda: rng.uniform(shape), lambda: torch.rand(shape, generator=generator), few)  # noqa: B023
        print(f"| {' x '.join(map(str, shape))} | {normal:.2f} | {uniform:.2f} |")


if __name__ == "__main__":
    main()
