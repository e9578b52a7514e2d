"""Contestants take turns in one process, and their CPU seconds are compared round by round.

On a shared machine the time of one run says little. The contestants of a round run within seconds of each other, so
the ratio of their CPU seconds varies much less. The median of the ratios has an interval without assumptions about
their distribution: of n ratios, the k-th smallest and the k-th largest, with k from the binomial distribution.
"""

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb

Turn = Callable[[], None]
LEVEL = 0.95  # of an interval


@dataclass(frozen=True)
class Ratio:
    """How many times as much CPU time, or memory, one contestant takes as another.

    Args:
        value: the median of the rounds' ratios.
        low: lower end of its interval.
        high: upper end of its interval.
        seconds: median CPU seconds of a turn of the first one, or its median memory.
        base: of the other one.
        rounds: the number of ratios.
    """

    value: float
    low: float
    high: float
    seconds: float
    base: float
    rounds: int


def of_children() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def take_turns(
    turns: Mapping[str, Turn], rounds: int, warm_up: int = 2, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """CPU seconds of each contestant in each round. Every second round has the reverse order.

    Args:
        turns: the contestants by name; a call is one turn.
        rounds: measured turns of each.
        warm_up: turns of each before the first round.
        clock: returns CPU seconds; `of_children` for contestants that are programs.
    """
    for turn in turns.values():
        for _ in range(warm_up):
            turn()
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            before = clock()
            turns[name]()
            seconds[name].append(clock() - before)
    return seconds


def ratio(seconds: Sequence[float], base: Sequence[float]) -> Ratio:
    """The ratio of two contestants' CPU seconds of the same rounds."""
    ratios = sorted(a / b for a, b in zip(seconds, base, strict=True))
    k = rank(len(ratios))
    return Ratio(
        statistics.median(ratios), ratios[k - 1], ratios[-k], statistics.median(seconds), statistics.median(base),
        len(ratios),
    )  # fmt: skip


def rank(n: int) -> int:
    """The largest k for which the k-th smallest and k-th largest of n values enclose the median with LEVEL.

    It is at least 1; below 6 values no two of them do.
    """
    k, tail = 0, 0.0
    while k < n // 2:
        tail += comb(n, k) / 2**n
        if 2 * tail > 1 - LEVEL:
            break
        k += 1
    return max(1, k)
