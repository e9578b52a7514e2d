"""The metrics, one a file; the folder is the registry.

A module here declares `METRIC`, a `Metric` (base.py): what it needs, how it is measured, which way is better, and its
columns. The document of an evaluation, the tables, `best:NAME`, the choices of a search and the addresses of
evaluations follow from the folder. What is slow to import (torch, the data, the engine) is imported inside functions,
because tables and `best:NAME` read the declarations alone. docs/adding-a-metric.md shows a whole one.
"""

import functools
import importlib
import pkgutil

from genflow.evaluation.metrics.base import Metric, Number

COSTS = ("nfe", "ms", "ms_alone", "loss")  # what a search can ask for that no metric measures; smaller is better
NOT_METRICS = ("base",)


def kinds() -> list[str]:
    """The names of the files."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_METRICS)


def files() -> list[str]:
    """The files as the repository names them: roots of what decides an evaluation (`source_hash.code_of`)."""
    return [f"genflow/evaluation/metrics/{kind}.py" for kind in kinds()]


def every() -> tuple[Metric, ...]:
    """The metrics in their order; the first, the Fréchet distance, is what tables rank by."""
    return _metrics(tuple(kinds()))


@functools.cache
def _metrics(kinds: tuple[str, ...]) -> tuple[Metric, ...]:
    found = [importlib.import_module(f"{__name__}.{kind}").METRIC for kind in kinds]
    return tuple(sorted(found, key=lambda metric: metric.order))


def numbers() -> dict[str, Number]:
    """The numbers that runs are compared by, by name, in the metrics' order."""
    return {number.name: number for metric in every() for number in metric.numbers}


def smaller_is_better(name: str) -> bool:
    """Whether the smaller of two values is the better one; of a name that nothing measures, the larger is."""
    number = numbers().get(name)
    return number.better == "smaller" if number else name in COSTS
