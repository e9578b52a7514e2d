"""The interface of metrics: each file declares one `Metric` with its inputs, its function and its columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from genflow.evaluation.interval import Interval
from genflow.evaluation.results import MetricValue

if TYPE_CHECKING:  # the command line reads the declarations without importing torch
    from genflow.data.shards import Dataset
    from genflow.evaluation.features.extractor import Emit, FeatureReference
    from genflow.recipe.schema import Evaluate
    from genflow.sampling.engine import Engine
    from genflow.storage.store import Store

Row = Mapping[str, Any]  # a `genflow.evaluate/1` document
ALL = 10**9  # value of `records`: those of every sample


@dataclass(frozen=True)
class Features:
    """The input of a metric with `needs="features"`: features of samples, or of real rows to get the floor.

    Args:
        x: features (N, D).
        labels: (N,) the requested classes.
        extractor: has the features of real data (`reference`) and caches what is computed from them (`cached`).
        repeats: number of half-samples for an interval.
        seed: seed of the half-samples.
    """

    x: np.ndarray
    labels: np.ndarray
    extractor: "FeatureReference"
    repeats: int
    seed: int


@dataclass(frozen=True)
class Model:
    """The input of a metric with `needs="model"`, which does not use the drawn samples.

    Args:
        store: stores artifacts that the metric needs.
        engine: the trained family with its sampling options.
        data: the dataset that it was trained on.
        extractor: the roles of real rows (`real`) and their features.
        options: the recipe's `evaluate` section.
        labels: (N,) the classes to request.
        emit: receives events.
        progress: called with a number of finished records and a description of the work.
        prompts: (N,) the captions to request; None for a family that reads labels.
    """

    store: "Store"
    engine: "Engine"
    data: "Dataset"
    extractor: "FeatureReference"
    options: "Evaluate"
    labels: np.ndarray
    emit: "Emit"
    progress: Callable[[int, str], None]
    prompts: Sequence[str] | None


@dataclass(frozen=True)
class Samples(Model):
    """The input of a metric with `needs="samples"`.

    Args:
        records: the first K samples in the format of a split, (K, H, W, C) or (K, 1, 1, 2). K is at least the largest
            `records` of the metrics of this data, or the number of samples.
        features: (N, D).
        classes: (N,) predicted by the classifier of the features; None if they have none.
    """

    records: np.ndarray
    features: np.ndarray
    classes: np.ndarray | None


@dataclass(frozen=True)
class Reading:
    """The result of a metric: a value with its interval.

    Args:
        interval: value, low and high.
        n: number of samples that it was computed from.
        features: what it was computed on, such as "pixels"; empty: the features of the extractor.
        floor: the value of real data. Omit it with `needs="features"`, where it is measured automatically.
        chance: the value of a guess, for shares that one can guess.
    """

    interval: Interval
    n: int
    features: str = ""
    floor: float | None = None
    chance: float | None = None

    def metric(self, extractor: "FeatureReference") -> MetricValue:
        """The entry of the document: {value, low, high, n, features, floor}, and chance if there is one."""
        found = self.interval.metric(self.n, self.features or extractor.name, self.floor)
        return found if self.chance is None else {**found, "chance": self.chance}


@dataclass(frozen=True)
class Number:
    """A number by which runs can be compared, in `best:NAME` and `genflow tune --metric NAME`.

    Args:
        name: a unique name.
        better: whether smaller or larger values are better.
        path: the keys that lead to it in the document; empty: `metrics`, `name`.
        tune: whether `genflow tune` can use it.
        neighbourhood: whether it counts neighbours, as precision does. Then a value beyond that of real data is no
            merit, but a sign of samples that crowd where real data is dense.
    """

    name: str
    better: Literal["smaller", "larger"]
    path: tuple[str, ...] = ()
    tune: bool = True
    neighbourhood: bool = False

    def get(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """{value, low, high, ...} from a document; None if the document lacks it."""
        found: Any = row
        for key in self.path or ("metrics", self.name):
            found = (found or {}).get(key)
        return found


@dataclass(frozen=True)
class Column:
    """A column of a table with one row per run: plain text on the command line, HTML in the report.

    Args:
        head: the title.
        cell: the cell of a run.
        real: the cell of real data, from the document of the first run; only in the report.
        has: whether a run has the column, from its document; a column that no run has is omitted.
        best: the name of the number whose best runs are highlighted; empty: none.
        order: the position among the columns of the report; None: the order of the metric.
        source: the number that the column shows, of which the report draws a dot plot; None: it draws none.
        form: formats a value of the plot.
        scale: a factor for its values.
    """

    head: str
    cell: Callable[[Row], str]
    real: Callable[[Row], str] = lambda row: "–"
    has: Callable[[Row], bool] = lambda row: True
    best: str = ""
    order: int | None = None
    source: Number | None = None
    form: Callable[[float], str] = lambda value: number(value)
    scale: float = 1


@dataclass(frozen=True)
class Metric:
    """A metric; each file declares one with the name `METRIC`.

    Args:
        measure: takes `Features`, `Samples` or `Model`, depending on `needs`. Without `section` it returns a dictionary
            of `Reading` by name, {} if the data or family has none. With `section` it returns a JSON object or None.
        needs: its input.
        numbers: the numbers by which runs can be compared.
        section: the key of its result in the document; empty: its readings are entries of `metrics`. If two metrics
            have the same section, the first result that is not empty is used.
        applies: whether it is measured for this data and these options.
        records: number of records of samples that it needs, from the first on; 0: only features.
        order: its position in documents and tables; the metrics of genflow use numbers below 100.
        table: its columns on the command line.
        report: its columns in the report.
    """

    measure: Callable[[Any], Any]
    needs: Literal["features", "samples", "model"]
    numbers: tuple[Number, ...] = ()
    section: str = ""
    applies: "Callable[[Dataset, Evaluate], bool]" = lambda data, options: True
    records: int = 0
    order: int = 100
    table: tuple[Column, ...] = ()
    report: tuple[Column, ...] = ()


def number(value: float) -> str:
    """About three significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time as text: 41 s, 9 min, 2.1 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def share(value: float) -> str:
    """Two decimals."""
    return f"{value:.2f}"


def with_interval(
    source: Number, head: str, form: Callable[[float], str] = share, scale: float = 1, *, mark: bool = True
) -> Column:
    """A column of the report with a number, its interval below it, and the value of real data.

    Args:
        source: the number.
        head: the title, as HTML.
        form: formats a value.
        scale: a factor for the values.
        mark: whether the best values of the column are highlighted.
    """

    def cell(row: Row) -> str:
        if not (found := source.get(row)):
            return "–"
        value, low, high = (form(scale * found[key]) for key in ("value", "low", "high"))
        return f"{value}<small>{low} to {high}</small>"

    def real(row: Row) -> str:
        floor = (source.get(row) or {}).get("floor")
        return "–" if floor is None else form(scale * floor)

    def has(row: Row) -> bool:
        return source.get(row) is not None

    best = source.name if mark else ""
    return Column(head, cell, real, has, best, source=source, form=form, scale=scale)
