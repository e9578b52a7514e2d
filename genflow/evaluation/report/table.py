"""The comparison as rows of text, and which run is the best by a metric."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from genflow.errors import UsageError, nearest
from genflow.evaluation import metrics
from genflow.evaluation.metrics.base import NONE, Column, Row, number
from genflow.storage.store import Artifact, Store


def columns() -> list[str]:
    """The table's head."""
    return [column.head for column in _columns()]


def rows(document: dict[str, Any]) -> list[list[str]]:
    """One line a run, best distance first, from the document of `evaluate` or `compare`."""
    found = sorted(document["rows"], key=lambda row: row["metrics"]["fd"]["value"])
    return [[column.cell(row) for column in _columns()] for row in found]


def _columns() -> list[Column]:
    """Whose run, quality, price: the first metric's columns stand before the number of evaluations."""
    first, *others = metrics.every()
    return [
        Column("run", lambda row: row["name"]),
        Column("family", lambda row: row["title"]),
        *first.table,
        Column("nfe", lambda row: str(row["nfe"])),
        *(column for metric in others for column in metric.table),
        Column("ms/img", lambda row: number(row["speed"]["ms_batch_64"])),
        Column("img/s train", _images_a_second),
    ]


def _images_a_second(row: Row) -> str:
    training = row["training"]
    seconds = training.get("seconds") or 0
    return f"{training['images'] / seconds:,.0f}" if seconds and training.get("images") else NONE


def best(found: Sequence[Mapping[str, Any]], metric: str = "fd") -> str:
    """The id of the run that a metric prefers.

    Raises:
        UsageError: no run has the metric.
    """
    values = {row["run"]: _value(row, metric) for row in found}
    measured = {run: value for run, value in values.items() if value is not None}
    if not measured:
        every = (*metrics.numbers(), "ms")
        known = sorted(name for name in every if any(_value(row, name) is not None for row in found))
        message = f"best:{metric}: no run has this metric{nearest(metric, known)}"
        raise UsageError(message, f"metrics: {', '.join(known)}")
    choose = min if metrics.smaller_is_better(metric) else max
    return choose(measured, key=lambda run: measured[run])


def _value(row: Row, metric: str) -> float | None:
    if metric == "ms":
        return row["speed"]["ms_batch_64"]
    declared = metrics.numbers().get(metric)
    return ((declared.get(row) if declared else row["metrics"].get(metric)) or {}).get("value")


def best_run(store: Store, metric: str) -> Artifact:
    """The best of the measured runs in a store; the newest evaluation of each counts.

    Raises:
        UsageError: nothing was measured, or there is no such metric.
    """
    newest: dict[str, dict[str, Any]] = {}
    for evaluation in store.artifacts("evaluations"):
        document = json.loads(evaluation.file("metrics.json").read_text())
        newest.pop(document["run"], None)
        if store.get("runs", document["run"]):
            newest[document["run"]] = document
    if not newest:
        raise UsageError(f"best:{metric}: nothing was measured yet", "genflow evaluate RUN")
    last = list(newest.values())[-1]  # distances on other data, or by other features, do not compare with it
    alike = [row for row in newest.values() if _measured_by(row) == _measured_by(last)]
    return store.find("runs", best(alike, metric))


def _measured_by(row: dict[str, Any]) -> tuple[str, str]:
    return row["fingerprint"], row["features"]["name"]
