"""The comparison as rows of text, and which run is the best by a metric."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from genflow.errors import UsageError, nearest
from genflow.storage.store import Artifact, Store

QUALITY = ("fd", "kid", "precision", "recall", "density", "coverage", "agreement")  # of samples against held-out rows
SMALLER_IS_BETTER = ("fd", "kid", "bits_per_dim", "straightness", "nfe", "ms", "ms_alone", "loss")
NONE = "—"


def columns() -> list[str]:
    """The table's head."""
    return ["run", "family", "fd (95 %)", "× floor", "nfe", "P / R", "bits/dim", "ms/img", "img/s train"]


def rows(document: dict[str, Any]) -> list[list[str]]:
    """One line a run, best distance first, from the document of `evaluate` or `compare`."""
    found = sorted(document["rows"], key=lambda row: row["metrics"]["fd"]["value"])
    return [_row(row) for row in found]


def _row(row: dict[str, Any]) -> list[str]:
    metrics, training = row["metrics"], row["training"]
    fd = metrics["fd"]
    distance = f"{number(fd['value'])} ({number(fd['low'])}–{number(fd['high'])})"
    seconds = training.get("seconds") or 0
    return [
        row["name"],
        row["title"],
        distance,
        f"{fd['value'] / fd['floor']:.1f}" if fd.get("floor", 0) > 0 else NONE,
        str(row["nfe"]),
        f"{metrics['precision']['value']:.2f} / {metrics['recall']['value']:.2f}",
        likelihood(row.get("likelihood")),
        number(row["speed"]["ms_batch_64"]),
        f"{training['images'] / seconds:,.0f}" if seconds and training.get("images") else NONE,
    ]


def likelihood(found: dict[str, Any] | None) -> str:
    """A likelihood with its error and its kind; a bound is called a bound."""
    if not found:
        return NONE
    kind = {"lower-bound": "≤ ", "ode-estimate": "≈ ", "exact-dequantized": ""}[found["kind"]]
    unit = "" if found["unit"] == "bits/dim" else f" {found['unit']}"
    return f"{kind}{found['value']:.3f} ± {found['stderr']:.3f}{unit}"


def number(value: float) -> str:
    """Three significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def best(found: Sequence[Mapping[str, Any]], metric: str = "fd") -> str:
    """The id of the run that a metric prefers.

    Raises:
        UsageError: no run has the metric.
    """
    values = {row["run"]: _value(row, metric) for row in found}
    measured = {run: value for run, value in values.items() if value is not None}
    if not measured:
        known = sorted({name for row in found for name in row["metrics"]} | {"bits_per_dim", "ms"})
        message = f"best:{metric}: no run has this metric{nearest(metric, known)}"
        raise UsageError(message, f"metrics: {', '.join(known)}")
    choose = min if metric in SMALLER_IS_BETTER else max
    return choose(measured, key=lambda run: measured[run])


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    if metric == "ms":
        return row["speed"]["ms_batch_64"]
    if metric == "bits_per_dim":
        return (row.get("likelihood") or {}).get("value")
    return (row["metrics"].get(metric) or {}).get("value")


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
