"""The results of a search: its ranked trials, the settings to confirm, search.json, best.yaml and trials.csv."""

import csv
import io
from pathlib import Path
from typing import Any

from genflow.recipe.files import dump
from genflow.system.documents import Json
from genflow.tuning import analysis, metrics, space
from genflow.tuning.reports import Row
from genflow.tuning.search import Search

ENDED = ("finished", "stopped", "diverged", "failed")
BIASED = "the best of many trials owes part of its score to luck: only the difference on fresh seeds counts"
CHANGING = "; both were trained with fixed settings: the population's last ones, not its schedule"


def with_final_status(rows: list[Row]) -> list[Row]:
    """The trials of a search that has ended: those still running were stopped by the budget or by the target."""
    return [{**row, "status": "stopped"} if row["status"] == "running" else row for row in rows]


def ranked(rows: list[Row], metric: str) -> list[Row]:
    """Sort the trials: the largest measured share of the budget first, then the best value."""
    sign = 1 if metrics.mode(metric) == "min" else -1

    def rank(row: Row) -> tuple[Any, ...]:
        good = metric in row["values"] and row["status"] not in ("diverged", "failed")
        return not good, -row["share"], sign * row["values"].get(metric, 0.0) if good else 0.0, row["trial"]

    return sorted(rows, key=rank)


def is_target_reached(search: Search, rows: list[Row]) -> bool:
    """Whether a finished trial has reached the target."""
    target, metric = search.recipe.tune.target, search.metrics[0]
    values = [row["values"][metric] for row in rows if row["status"] == "finished" and metric in row["values"]]
    return target is not None and any(v == target or metrics.is_better(metric, v, target) for v in values)


def confirmation_settings(search: Search, rows: list[Row]) -> list[Json]:
    """The settings to train again: best and preset alternate, with seeds that the search has not used."""
    top = analysis.best(rows, search.metrics[0])
    if top is None or search.objective or not differs_from_preset(search, top):
        return []
    used = {row["params"].get("train.seed") for row in rows} | {search.recipe.train.seed}
    fresh = [seed for seed in range(1000, 1000 + len(used) + search.recipe.tune.confirm) if seed not in used]
    seeds = fresh[: search.recipe.tune.confirm]
    own: Json = {}
    return [{**params, "train.seed": seed} for seed in seeds for params in (top["params"], own)]


def differs_from_preset(search: Search, row: Row) -> bool:
    """Whether a trial's settings differ from the preset's."""
    return any(search.preset_values[key] != value for key, value in row["params"].items())


def document(search: Search, rows: list[Row], confirmed: list[Row], seconds: float, folder: Path) -> Json:
    """The `genflow.tune/1` document.

    Args:
        search: the search.
        rows: its trials.
        confirmed: the trials of the confirmation; best and preset alternate.
        seconds: how long the trials took.
        folder: the search's folder.
    """
    metric, best_file = search.metrics[0], folder / "best.yaml"
    top = analysis.best(rows, metric)
    assert top is not None
    changing = search.recipe.tune.scheduler == "pbt"  # the last settings do not explain a result of earlier ones
    pairs = zip(confirmed[::2], confirmed[1::2], strict=False) if confirmation_settings(search, rows) else []
    mine, theirs = [list(side) for side in zip(*pairs, strict=True)] or [[], []]
    confirmation = analysis.confirmation(mine, theirs, metric)
    return {
        "schema": "genflow.tune/1", "search": search.id, "name": search.name,
        "family": search.run.recipe.family["kind"], "dataset": search.run.dataset.id,
        "dataset_name": search.run.dataset.name, "metrics": list(search.metrics),
        "space": {key: str(domain) for key, domain in search.space.items()},
        "tune": search.recipe.tune.model_dump(mode="json", exclude={"space"}),
        "samples": search.recipe.tune.samples, "seconds": seconds,
        "counts": {status: sum(row["status"] == status for row in rows) for status in ENDED},
        "best": {**top, "is_preset": not differs_from_preset(search, top)},
        "preset": next((row for row in rows if not differs_from_preset(search, row)), None),
        "confirmation": confirmation,
        "confirmed": analysis.confirmation_text(confirmation, metric) if confirmation else "",
        "note": BIASED + (CHANGING if changing else ""),
        "importance": {} if changing else analysis.importance(rows, search.space, metric),
        "front": analysis.pareto_front(rows, search.metrics) if len(search.metrics) > 1 else [],
        "target_reached": None if search.recipe.tune.target is None else is_target_reached(search, rows),
        "trials": rows, "ranked": ranked(rows, metric), "best_file": str(best_file),
        "command": f"genflow train -c {best_file}",
    }  # fmt: skip


def best_yaml(search: Search, found: Json, data: str) -> str:
    """The best settings as a recipe, with the recipe's full budget instead of a trial's; `data` names the dataset."""
    top = found["best"]
    document = space.apply(search.recipe, top["params"]).model_dump(mode="json")
    learned = search.run.recipe.data
    by_default = "none" if search.run.facts.is_large else ""  # large pictures are learned as latents by default
    named = {"pairs": search.recipe.data.pairs, "latents": learned.latents or by_default, "text": learned.text}
    document["data"] = {"name": data, **{key: value for key, value in named.items() if value}}
    kept = {key: document[key] for key in ("init", "data", "net", "family", "train", "sample") if document[key]}
    lines = [found["command"], f"trial {top['trial']} of {search.id}: {values_text(search, top)}"]
    lines += [found["confirmed"]] if found["confirmed"] else []
    if "schedule" in top:
        lines += ["these are the population's last settings; the measured weights were trained with"]
        stages = [(settings_text(stage["params"]), stage["share"]) for stage in top["schedule"]]
        lines += [f"  {settings} up to {share:.0%} of the budget" for settings, share in stages]
    return "".join(f"# {line}\n" for line in lines) + dump(kept)


def settings_text(params: Json) -> str:
    """Settings as text."""
    return ", ".join(f"{key}={x:.4g}" if isinstance(x, float) else f"{key}={x}" for key, x in params.items())


def values_text(search: Search, row: Row) -> str:
    """A trial's values as text."""
    values = ", ".join(f"{name} {row['values'][name]:.4g}" for name in search.metrics)
    steps = f" after {row['step']:,} steps" if "step" in row else ""
    return values + (f" on {row['samples']:,} samples" if "samples" in row else "") + steps


def csv_table(search: Search, rows: list[Row]) -> str:
    """The trials as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "status", "share", "samples", *search.metrics, *search.space, "seconds", "why"])
    for row in rows:
        values = [row["values"].get(name, "") for name in search.metrics]
        params = [row["params"].get(key, "") for key in search.space]
        more = [row.get("seconds", ""), row.get("why", "")]
        writer.writerow([row["trial"], row["status"], row["share"], row.get("samples", ""), *values, *params, *more])
    return out.getvalue()
