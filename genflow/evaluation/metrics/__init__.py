"""The metrics, one per file; the folder is the registry.

Each module declares `METRIC`, a `Metric` (base.py): its inputs, its function, whether smaller or larger is better, and
its columns. The document of an evaluation, the tables, `best:NAME`, the metrics of `genflow tune` and the addresses of
evaluations are derived from the folder. Slow imports (torch, the data, the engine) belong inside functions, because
tables and `best:NAME` need only the declarations. docs/adding-a-metric.md has a complete example.
"""

import functools
import importlib
import pkgutil

from genflow.evaluation.metrics.base import Metric, Number

COSTS = ("nfe", "ms", "ms_alone", "loss")  # metrics of a search that no file here measures; smaller is better
NOT_METRICS = ("base",)


def kinds() -> list[str]:
    """The names of the modules, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_METRICS)


def files() -> list[str]:
    """The paths of the files in the repository; evaluations hash them and their imports (`source_hash.code_of`)."""
    return [f"genflow/evaluation/metrics/{kind}.py" for kind in kinds()]


def every() -> tuple[Metric, ...]:
    """The metrics in their order. Tables are sorted by the first one, the Fréchet distance."""
    return _metrics(tuple(kinds()))


@functools.cache
def _metrics(kinds: tuple[str, ...]) -> tuple[Metric, ...]:
    found = [importlib.import_module(f"{__name__}.{kind}").METRIC for kind in kinds]
    return tuple(sorted(found, key=lambda metric: metric.order))


def numbers() -> dict[str, Number]:
    """The numbers by which runs can be compared, by name, in the order of the metrics."""
    return {number.name: number for metric in every() for number in metric.numbers}


def smaller_is_better(name: str) -> bool:
    """Whether smaller values of a number are better; False for an unknown name."""
    number = numbers().get(name)
    return number.better == "smaller" if number else name in COSTS
