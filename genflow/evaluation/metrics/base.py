"""What a metric is: one `Metric` a file, which says what it needs, how it is measured, and how tables show it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from genflow.evaluation.interval import Interval
from genflow.evaluation.results import MetricValue

if TYPE_CHECKING:  # the tables of the command line read metrics without torch
    from genflow.data.shards import Dataset
    from genflow.evaluation.features.extractor import Emit, FeatureReference
    from genflow.recipe.schema import Evaluate
    from genflow.sampling.engine import Engine
    from genflow.storage.store import Store

Row = Mapping[str, Any]  # a `genflow.evaluate/1` document
NONE = "—"
ALL = 10**9  # records: every sample's


@dataclass(frozen=True)
class Features:
    """What a metric with `needs="features"` sees: of samples, and of real rows in their place, which give its floor.

    Args:
        x: (N, D).
        labels: (N,) what the samples were asked to be.
        judge: the real data's features (`reference`), and what is computed from them once (`once`).
        repeats: half-samples for an interval.
        seed: of the half-samples.
    """

    x: np.ndarray
    labels: np.ndarray
    extractor: "FeatureReference"
    repeats: int
    seed: int


@dataclass(frozen=True)
class Model:
    """What a metric with `needs="model"` sees: no samples are drawn for it.

    Args:
        store: where an artifact that it needs is kept.
        engine: the trained family with the options of its sampling.
        data: what it was trained on.
        judge: which real rows are held out (`real`), and their features.
        options: the recipe's `evaluate` section.
        labels: (N,) what samples are asked to be.
        emit: takes events.
        tell: takes how many of its records are measured, and in words what they are.
    """

    store: "Store"
    engine: "Engine"
    data: "Dataset"
    extractor: "FeatureReference"
    options: "Evaluate"
    labels: np.ndarray
    emit: "Emit"
    progress: Callable[[int, str], None]


@dataclass(frozen=True)
class Samples(Model):
    """What a metric with `needs="samples"` sees.

    Args:
        records: the first K samples as a split has them, (K, H, W, C) or (K, 1, 1, 2); K is at least what any metric of
            this data asks for as `records`, where there are so many.
        features: (N, D).
        classes: (N,) what the judge's classifier sees; None if it cannot tell.
    """

    records: np.ndarray
    features: np.ndarray
    classes: np.ndarray | None


@dataclass(frozen=True)
class Reading:
    """A number with its interval, before it is a metric of the document.

    Args:
        interval: value, low and high.
        n: samples that it was computed from.
        features: what it was computed on, such as "pixels"; empty: the judge's features.
        floor: real data's value; with `needs="features"` it is measured, and this is left out.
    """

    interval: Interval
    n: int
    features: str = ""
    floor: float | None = None

    def metric(self, extractor: "FeatureReference") -> MetricValue:
        """{value, low, high, n, features, floor}."""
        return self.interval.metric(self.n, self.features or extractor.name, self.floor)


@dataclass(frozen=True)
class Number:
    """A number that runs are compared by, as `best:NAME` and `genflow tune --metric NAME`.

    Args:
        name: one that no other metric has.
        better: which way.
        path: where the document holds it; empty: `metrics`, `name`.
        tune: whether a search may ask for it.
    """

    name: str
    better: Literal["smaller", "larger"]
    path: tuple[str, ...] = ()
    tune: bool = True

    def get(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """{value, low, high, ...} in a document; None if it has none."""
        found: Any = row
        for key in self.path or ("metrics", self.name):
            found = (found or {}).get(key)
        return found


@dataclass(frozen=True)
class Column:
    """A column of a table with one line a run: plain text on the command line, HTML in the report.

    Args:
        head: its title.
        cell: a run's cell.
        real: real data's cell, from the first run's document; the command line has none.
        has: whether the table has the column, from the first run's document; the command line always has it.
        best: the name of the number whose best runs are marked; empty: none are.
        order: its place among the report's columns; None: the metric's.
    """

    head: str
    cell: Callable[[Row], str]
    real: Callable[[Row], str] = lambda row: "–"
    has: Callable[[Row], bool] = lambda row: True
    best: str = ""
    order: int | None = None


@dataclass(frozen=True)
class Metric:
    """A metric, as its file declares it by the name `METRIC`.

    Args:
        measure: takes a `Features`, `Samples` or `Model`, as `needs` says. Without `section` it returns a `Reading` by
            name, {} where the data or the family has none; with it, a JSON document or None.
        needs: what it is measured from.
        numbers: what runs can be compared by.
        section: the document's key for what `measure` returns; empty: its readings are among `metrics`. Where two
            metrics have one section, the first answer counts.
        applies: whether it is measured on this data with these options.
        records: how many of the first samples' records it looks at; with 0 it sees features alone.
        order: its place in documents and tables; those of genflow itself come before 100.
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
    """Three significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def share(value: float) -> str:
    """Two decimals."""
    return f"{value:.2f}"


def with_interval(
    source: Number, head: str, form: Callable[[float], str] = share, scale: float = 1, *, mark: bool = True
) -> Column:
    """A column of the report: a number above its interval, and real data's value.

    Args:
        source: the number.
        head: the title, as HTML.
        form: how a value is written.
        scale: what values are multiplied by.
        mark: whether the best of the column are marked.
    """

    def cell(row: Row) -> str:
        if not (found := source.get(row)):
            return "–"
        value, low, high = (form(scale * found[key]) for key in ("value", "low", "high"))
        return f"{value}<small>{low} to {high}</small>"

    def real(row: Row) -> str:
        floor = (source.get(row) or {}).get("floor")
        return "–" if floor is None else form(scale * floor)

    return Column(head, cell, real, lambda row: source.get(row) is not None, source.name if mark else "")
