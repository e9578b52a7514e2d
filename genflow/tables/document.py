"""The tables as one JSON document, built from the evaluations of a study; text, Markdown and HTML follow from it."""

import json
from statistics import median
from typing import Any

from genflow import families
from genflow.errors import GenflowError
from genflow.runs import cpu_seconds, latents_cpu_seconds
from genflow.storage.store import Store
from genflow.system.documents import Json
from genflow.tables import formatting, summary
from genflow.tables.claims import Claim, verdicts
from genflow.tables.plan import COLUMNS, TABLES
from genflow.tables.quantities import Evaluations, Quantity, curve, quantities
from genflow.training.verdict import cautions

SCHEMA = "genflow.tables/1"


def gather(store: Store, evaluations: dict[str, str]) -> Evaluations:
    """Load the documents of evaluations, by row and seed.

    Args:
        store: holds the evaluations.
        evaluations: their ids by stage, `<row>-m<seed>`.

    Raises:
        GenflowError: an evaluation no longer exists.
    """
    found: Evaluations = {}
    for stage, id in evaluations.items():
        artifact = store.get("evaluations", id)
        if artifact is None:
            raise GenflowError(f"the evaluation {id} of stage {stage} no longer exists", "run the same command again")
        row, _, seed = stage.rpartition("-m")
        document = json.loads(artifact.verify().file("metrics.json").read_text(encoding="utf-8"))
        found.setdefault(row, {})[int(seed)] = {**document, "path": str(artifact.path)}
    return found


def build(store: Store, study: Json, found: Evaluations, failed: dict[str, Json]) -> Json:
    """A `genflow.tables/1` document, without the id and path of the report.

    Args:
        store: holds the runs.
        study: the plan's seeds, budget, tolerance, runs, rows, trials and claims.
        found: the evaluations.
        failed: failures by stage: {stage, kind, message}; `stage` is the one that failed first.

    Raises:
        GenflowError: there is no evaluation of any method.
    """
    rows = [row for seeds in found.values() for row in seeds.values()]
    latents = _latents(store, rows)
    measured = quantities(study, found, failed, before=latents["cpu_seconds"] if latents else 0.0)
    first = next((row for name in measured for row in found.get(name, {}).values()), None)
    if first is None:
        reasons = "; ".join(f"{name}: {failure['message']}" for name, failure in failed.items())
        message = f"nothing was measured, so there are no tables ({reasons})"
        raise GenflowError(message, "fix the cause and run the same command again")
    methods = {name: _method(name, study, found, measured[name]) for name in measured}
    seconds = {row["run"]: sum(cpu_seconds(store, store.find("runs", row["run"]))[-1:]) for row in rows}
    document = {
        "schema": SCHEMA,
        "dataset": first["dataset"],
        "dataset_name": first["dataset_name"],
        "seeds": study["seeds"],
        "budget_cpu_minutes": study["budget"],
        "tolerance": study["tolerance"],
        "target": study.get("target"),
        "samples": first["samples"],
        "features": first["features"],
        "reference": first["reference"],
        "machine": first["machine"],
        "load": _load(rows),
        "versions": first["versions"],
        "cost_hours": {
            "training_cpu": round((sum(seconds.values()) + (latents["cpu_seconds"] if latents else 0)) / 3600, 3),
            "measuring": round(sum(row["seconds"] for row in rows) / 3600, 3),
        },
        "latents": latents and {**latents, "limit": _limit(measured)},
        "methods": methods,
        "tables": [_table(name, study, methods) for name in TABLES],
        "claims": verdicts([Claim(**claim) for claim in study["claims"]], measured),
        "failed": [
            {"stage": name, "message": failure["message"], "kind": failure["kind"]}
            for name, failure in failed.items()
            if failure["stage"] == name  # stages that only waited for a failed one are not listed
        ],
        "command": study.get("command", "genflow tables"),
    }
    barely = cautions(_trainings(store, study, found), budgets=False)
    verdict = [*barely, *summary.verdict(document)]
    return {**document, "cautions": barely, "verdict": verdict, "about": summary.about(document, study)}


def _trainings(store: Store, study: Json, found: Evaluations) -> dict[str, Json]:
    """The meta of a run of each method, by its title; the budgets of other rows differ on purpose."""
    shown = {name for name, row in study["rows"].items() if row["tables"]}
    return {
        study["rows"][name]["title"]: store.find("runs", next(iter(seeds.values()))["run"]).meta
        for name, seeds in found.items() if name in shown and seeds
    }  # fmt: skip


def _latents(store: Store, rows: list[Json]) -> Json | None:
    """The latents that the runs learned, with their autoencoder and the CPU seconds of both; None for pictures."""
    runs = [store.find("runs", row["run"]) for row in rows]
    id = next((run.meta["latents"] for run in runs if run.meta.get("latents")), "")
    if not id:
        return None
    made = store.find("latents", id)
    seconds = round(sum(latents_cpu_seconds(store, made)), 1)
    return {"latents": made.id, "autoencoder": made.meta["autoencoder"], "cpu_seconds": seconds}


def _load(rows: list[Json]) -> Json | None:
    """The median load of the machine while it measured, and its cores; None if it is unknown."""
    loads = [row["speed"]["load"] for row in rows if row["speed"].get("load") is not None]
    return {"median": round(median(loads), 1), "cores": rows[0].get("cores", 1)} if loads else None


def _limit(measured: dict[str, dict[str, Quantity]]) -> Quantity | None:
    """The fd of the autoencoder's reconstructions, which is the same for all methods."""
    return next((found["reconstruction_fd"] for found in measured.values() if "reconstruction_fd" in found), None)


def _method(name: str, study: Json, found: Evaluations, measured: dict[str, Any]) -> Json:
    row = study["rows"][name]
    kind = study["runs"][row["run"]]["preset"]
    method = {
        "title": row["title"],
        "family": kind,
        "run": row["run"],
        "objective": families.family_class(kind).objective,
        "mathematics": row.get("mathematics", ""),
        "evaluations": {str(seed): one["evaluation"] for seed, one in sorted(found.get(name, {}).items())},
        "quantities": measured,
        "curve": curve(list(found.get(name, {}).values())),
        "curve_samples": next((row["sweep"][0]["fd"]["n"] for row in found.get(name, {}).values()), None),
    }
    return {**method, "cells": formatting.cells(method, study["tolerance"], study.get("target", 0.0))}


def _table(name: str, study: Json, methods: dict[str, Json]) -> Json:
    title, columns = TABLES[name]
    rows = [
        {"method": key, "title": method["title"], "cells": {column: method["cells"][column] for column in columns}}
        for key, method in methods.items()
        if name in study["rows"][key]["tables"]
    ]
    return {"name": name, "title": title, "columns": [[column, COLUMNS[column]] for column in columns], "rows": rows}
