"""The comparison as a table of text, and the best run by a metric."""

from collections.abc import Mapping, Sequence
from typing import Any

from genflow.errors import UsageError, similar
from genflow.evaluation import metrics
from genflow.evaluation.metrics.base import Column, Row, number
from genflow.evaluation.results import documents, headlines
from genflow.storage.store import Artifact, Store
from genflow.system.streams import NONE

MAX_NAMED = 3  # runs that a line names
HOPELESS = 0.5  # share of real data's variety, below which fidelity says nothing


def columns(document: dict[str, Any]) -> list[str]:
    """The titles of the columns, from the document of `genflow evaluate` or `genflow compare`."""
    return [column.head for column in _columns(document["rows"])]


def rows(document: dict[str, Any]) -> list[list[str]]:
    """One row per run, smallest fd first, from the document of `genflow evaluate` or `genflow compare`."""
    found = sorted(document["rows"], key=lambda row: row["metrics"]["fd"]["value"])
    return [[column.cell(row) for column in _columns(found)] for row in found]


def _columns(found: Sequence[Row]) -> list[Column]:
    """Run, quality, cost: the columns of the first metric, then nfe, then those of the other metrics.

    A column that no run has is omitted.
    """
    first, *others = metrics.every()
    every = [
        Column("run", lambda row: row["name"]),
        Column("family", lambda row: row["title"]),
        *first.table,
        Column("nfe", lambda row: str(row["nfe"])),
        *(column for metric in others for column in metric.table),
        Column("ms/img", lambda row: number(row["speed"]["ms_batch_64"])),
        Column("img/s train", _images_a_second),
    ]
    return [column for column in every if any(column.has(row) for row in found)]


def _images_a_second(row: Row) -> str:
    training = row["training"]
    seconds = training.get("seconds") or 0
    return f"{training['images'] / seconds:,.0f}" if seconds and training.get("images") else NONE


def best(found: Sequence[Mapping[str, Any]], metric: str = "fd") -> str:
    """The id of the best run by a metric; a run that cannot be the best one (`counts`) is one only among such runs.

    Raises:
        UsageError: no run has the metric.
    """
    competing = [row for row in found if counts(row, metric)] or found
    values = {row["run"]: _value(row, metric) for row in competing}
    measured = {run: value for run, value in values.items() if value is not None}
    if not measured:
        every = (*metrics.numbers(), "ms")
        known = sorted(name for name in every if any(_value(row, name) is not None for row in found))
        message = f"best:{metric}: no run has this metric{similar(metric, known)}"
        raise UsageError(message, f"metrics: {', '.join(known)}")
    choose = min if metrics.smaller_is_better(metric) else max
    return choose(measured, key=lambda run: measured[run])


def counts(row: Mapping[str, Any], metric: str) -> bool:
    """Whether a run can be the best one by a metric.

    An autoencoder can be by a metric of reconstructions only. By a metric of neighbourhoods, no run can be whose value
    is beyond that of real data, or whose samples lack nearly all variety: both have samples that crowd in a few places.
    """
    declared = metrics.numbers().get(metric)
    if row.get("reconstructs"):
        return declared is not None and declared.path[:1] == ("reconstruction",)
    if declared is None or not declared.neighbourhood:
        return True
    found = declared.get(row)
    beyond = found is not None and found.get("floor") is not None and found.get("low", 0) > found["floor"]
    return not beyond and not _lacks_variety(row)


def _lacks_variety(row: Mapping[str, Any]) -> bool:
    """Whether recall or coverage is certainly less than half of that of real data."""
    found = [row["metrics"].get(name) for name in ("recall", "coverage")]
    return any(one["high"] < HOPELESS * one["floor"] for one in found if one and one.get("floor"))


def _value(row: Row, metric: str) -> float | None:
    if metric == "ms":
        return row["speed"]["ms_batch_64"]
    declared = metrics.numbers().get(metric)
    return ((declared.get(row) if declared else row["metrics"].get(metric)) or {}).get("value")


def best_run(store: Store, metric: str) -> tuple[Artifact, str]:
    """The best of the measured runs in a store, by the evaluation of each that holds its figures (`results.headlines`).

    Only runs with the same data and features as the newest evaluation are considered, and an autoencoder only for the
    metrics of its reconstructions, because it draws no samples. A metric of samples depends on their number, so runs
    are ranked on the number that most of them were measured on.

    Returns:
        The run, and a line that names the runs that were not measured on this number; empty if there is none.

    Raises:
        UsageError: no run was measured, or there is no such metric.
    """
    found = [
        row for run, row in headlines(store).items()
        if (not row.get("reconstructs") or counts(row, metric)) and store.get_or_warn("runs", run)
    ]  # fmt: skip
    # distances with other data or features are not comparable
    comparable = [row for row in found if _measured_by(row) == _measured_by(found[-1])]
    if not comparable:
        raise UsageError(f"best:{metric}: no run was measured yet", "genflow evaluate RUN")
    ranked = _equally_measured(store, comparable, metric)
    left_out = {row["run"]: row["samples"] for row in comparable} if len(ranked) < len(comparable) else {}
    left_out = {run: n for run, n in left_out.items() if run not in {row["run"] for row in ranked}}
    remark = left_out and (
        f"note: best:{metric} ranks the {len(ranked)} run{'s' * (len(ranked) != 1)} that were measured on "
        f"{ranked[0]['samples']:,} samples, not {_listed(left_out)}; genflow compare RUN... measures runs alike"
    )
    return store.find("runs", best(ranked, metric)), remark or ""


def _listed(runs: Mapping[str, int]) -> str:
    """Some runs and the numbers of samples that they were measured on, as text."""
    shown = [f"{run} ({n:,})" for run, n in list(runs.items())[:MAX_NAMED]]
    more = [f"{len(runs) - MAX_NAMED} more"] if len(runs) > MAX_NAMED else []
    return " and ".join([", ".join(shown), *more])


def _equally_measured(store: Store, found: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The evaluations on the number of samples that most runs were measured on; of several, on the largest.

    All of `found`, if they have the same number or the metric depends on none.
    """
    declared = metrics.numbers().get(metric)
    of_samples = declared is None or not declared.path
    if metric == "ms" or not of_samples or len({row["samples"] for row in found}) == 1:
        return found
    names, sampled = {row["run"] for row in found}, {row["run"]: row.get("sample") for row in found}
    by_number: dict[int, dict[str, dict[str, Any]]] = {}
    for _, row in documents(store):
        alike = row["run"] in names and row.get("sample") == sampled[row["run"]]
        if alike and _measured_by(row) == _measured_by(found[-1]) and _value(row, metric) is not None:
            by_number.setdefault(row["samples"], {})[row["run"]] = row  # the newest
    if not by_number:
        return found
    most = max(by_number, key=lambda number: (len(by_number[number]), number))
    return list(by_number[most].values())


def _measured_by(row: dict[str, Any]) -> tuple[str, str]:
    return row["fingerprint"], row["features"]["name"]
