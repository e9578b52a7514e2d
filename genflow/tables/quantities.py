"""From evaluations of several seeds to one set of quantities per method, each with its interval.

A quantity is {value, low, high, each, floor}: the mean over seeds with Student's 95 % interval (for a single seed: the
interval over its samples), the values of the seeds, and the value of real data if there is one. `high` is None if the
interval has no upper end.

    fd kid precision recall density coverage agreement classification copies      as `genflow evaluate` measures them
    r_precision, r_precision_hard, r_precision_unseen, r_precision_unseen_hard      of runs of captions
    fd@N            fd with N network evaluations
    steps           network evaluations needed (evaluation/steps_needed.py); the widest interval over the seeds
    ms, ms_needed   milliseconds per sample in batches of 64: with the row's setting, and with `steps` evaluations
    ms_alone        milliseconds per sample in a batch of 1
    images_per_second, memory_mb, nfe
    train_rate      training images per CPU second
    spread          standard deviation of fd over seeds, divided by its mean; chi-squared interval
    diverged        share of trainings that diverged, over seeds and learning rates; Wilson's interval
    worst           the largest fd of any seed
    lr_sensitivity  the larger fd at a third and at three times the learning rate, divided by fd at the preset's rate
    seconds_to      CPU seconds of the shortest tried training whose fd is at most `target` times its floor
    rarest          the share of the most neglected class among samples, divided by its share in real data
    straightness, likelihood      no likelihood for runs on latents: their density is not that of pictures
    reconstruction_fd             fd of the autoencoder's reconstructions: the limit of runs on latents
    grid_captured, grid_share, grid_kl, uneven_...    modes found, share of points near one, KL to the true weights
    stacked_captured, stacked_kl, stacked_ceiling     the same for stacks, and the modes that as many real stacks show
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import special

from genflow.errors import DIVERGED
from genflow.evaluation import steps_needed
from genflow.evaluation.interval import over_trainings, proportion
from genflow.system.documents import Json

Evaluations = dict[str, dict[int, Json]]  # `genflow.evaluate/1` rows by row and seed
Quantity = dict[str, Any]
LR_TRIALS, MODE_TRIALS, TIME_TRIALS = ("slow", "fast"), ("grid", "uneven", "stacked"), ("quarter", "half")


def quantities(
    study: Json, found: Evaluations, failed: dict[str, Json], before: float = 0.0
) -> dict[str, dict[str, Quantity]]:
    """The quantities of every method.

    Args:
        study: the plan's rows, runs, seeds, trials and tolerance.
        found: the evaluations.
        failed: failures by stage: {stage, kind, message}.
        before: CPU seconds that every training needs first, of the autoencoder and the latents.
    """
    methods = {name: row for name, row in study["rows"].items() if row.get("tables")}
    return {name: _of(name, row["run"], study, found, failed, before) for name, row in methods.items()}


def _of(
    name: str, run: str, study: Json, found: Evaluations, failed: dict[str, Json], before: float
) -> dict[str, Quantity]:
    own = list(found.get(name, {}).values())
    ended = diverged(run, study, found, failed)
    result: dict[str, Quantity] = {"diverged": ended} if ended else {}
    if not own:
        return result
    result |= {metric: over_seeds(row["metrics"].get(metric) for row in own) for metric in own[0]["metrics"]}
    result |= {name: over_seeds(row["memorization"][name] for row in own) for name in own[0].get("memorization") or {}}
    result["straightness"] = over_seeds(row["straightness"] for row in own)
    result |= {f"fd@{point['nfe']}": point["fd"] for point in curve(own)}
    tolerance = study["tolerance"]
    result["steps"] = steps(own, tolerance)
    needed = [steps_needed.enough(row["sweep"], tolerance) for row in own]
    result |= {
        "nfe": without_interval(row["nfe"] for row in own),
        "ms": without_interval(row["speed"]["ms_batch_64"] for row in own),
        "ms_needed": without_interval(point["ms_per_image"] for point in needed),
        "ms_alone": without_interval(row["speed"]["ms_batch_1"] for row in own),
        "images_per_second": without_interval(row["speed"]["images_per_second"] for row in own),
        "memory_mb": without_interval(row["speed"].get("memory_mb") for row in own),
        "train_memory_mb": without_interval(row["training"].get("memory_mb") for row in own),
        "train_rate": without_interval(_rate(row["training"]) for row in own),
        "spread": spread([row["metrics"]["fd"]["value"] for row in own]),
        "worst": _exact(max(row["metrics"]["fd"]["value"] for row in own)),
        "reconstruction_fd": over_seeds((row.get("reconstruction") or {}).get("fd") for row in own),
    }
    if not result["reconstruction_fd"]:
        measured = [row["likelihood"] for row in _likelihood_rows(run, study, found)]
        result["likelihood"] = likelihood(measured, own[0].get("has_likelihood"))
    if sensitive := lr_sensitivity(run, study, found, failed, found.get(_first(run, study), {})):
        result["lr_sensitivity"] = sensitive
    result["seconds_to"] = seconds_to(run, study, found, before)
    classes = [row["classes"]["rarest"] for row in own if row.get("classes")]
    if classes:
        result["rarest"] = {**over_seeds(classes), "class": min(classes, key=lambda rarest: rarest["value"])["class"]}
    for trial in MODE_TRIALS:
        result |= _modes(trial, [row["modes"] for row in found.get(f"{run}-{trial}", {}).values() if row.get("modes")])
    return {key: quantity for key, quantity in result.items() if quantity}


def _modes(trial: str, seen: list[Json]) -> dict[str, Quantity]:
    """The quantities of a trial with known modes, over seeds; {} if it was not measured."""
    if not seen:
        return {}
    found = [{"value": m["captured"], "low": low, "high": high} for m in seen for low, high in [_captured_interval(m)]]
    result = {f"{trial}_captured": {**over_seeds(found), "of": seen[0]["of"]}}
    result[f"{trial}_kl"] = over_seeds(m["kl"] for m in seen)
    result[f"{trial}_share"] = over_seeds(m.get("high_quality") for m in seen)
    result[f"{trial}_ceiling"] = without_interval(m.get("ceiling") for m in seen)
    return result


def _captured_interval(modes: Json) -> list[float]:
    """The interval of the number of captured modes; without one, the number itself twice."""
    found: list[float] = modes.get("interval") or [modes["captured"]] * 2
    return found


def over_seeds(metrics: Iterable[Quantity | None]) -> Quantity:
    """The quantity of a metric over seeds; {} if no seed has it."""
    have = [metric for metric in metrics if metric is not None]
    if not have:
        return {}
    floors = [metric["floor"] for metric in have if metric.get("floor") is not None]
    floor = float(np.mean(floors)) if floors else None
    return {**vars(over_trainings(have)), "each": [metric["value"] for metric in have], "floor": floor}


def without_interval(values: Iterable[float | None]) -> Quantity:
    """The quantity over seeds of a number without an interval of its own."""
    have = [value for value in values if value is not None]
    return over_seeds({"value": value, "low": value, "high": value} for value in have)


def _exact(value: float) -> Quantity:
    return {"value": value, "low": value, "high": value, "each": [value], "floor": None}


def steps(rows: list[Json], tolerance: float) -> Quantity:
    """The network evaluations needed: the median over seeds, and an interval that contains those of all seeds."""
    each = [steps_needed.needed(row["sweep"], tolerance) for row in rows]
    tried, high = max(point["nfe"] for row in rows for point in row["sweep"]), max(interval.high for interval in each)
    open_end = tried > 1 and high >= tried  # no larger number was tried
    return {
        "value": sorted(interval.value for interval in each)[(len(each) - 1) // 2],
        "low": min(interval.low for interval in each),
        "high": None if open_end else high,
        "each": [interval.value for interval in each],
        "floor": None,
        "tried": tried,
    }


def spread(values: list[float]) -> Quantity:
    """The standard deviation over seeds divided by the mean; {} for fewer than two seeds.

    (n - 1) s^2 / sigma^2 is chi-squared with n - 1 degrees of freedom for normal values.
    """
    n = len(values)
    if n < 2 or not np.mean(values):
        return {}
    share = float(np.std(values, ddof=1) / np.mean(values))
    low, high = (share * math.sqrt((n - 1) / special.chdtri(n - 1, above)) for above in (0.025, 0.975))
    return {"value": share, "low": low, "high": high, "each": values, "floor": None}


def diverged(run: str, study: Json, found: Evaluations, failed: dict[str, Json]) -> Quantity:
    """The share of trainings that diverged, over all seeds and learning rates; {} if none was tried.

    Trainings that failed for another reason, such as a full disk, are not counted.
    """
    trials = [f"{run}-{trial}" for trial in LR_TRIALS if run in study["trials"].get(trial, {}).get("of", ())]
    stages = [f"{run}-s{seed}" for seed in study["seeds"]]
    stages += [f"{trial}-s{study['seeds'][0]}" for trial in trials]
    rows = [name for name, row in study["rows"].items() if row["run"] == run]
    measured = [f"{run}-s{seed}" for seed in study["seeds"] if any(seed in found.get(row, {}) for row in rows)]
    measured += [f"{trial}-s{seed}" for trial in trials for seed in found.get(trial, {})]
    ended = [stage in failed and failed[stage]["kind"] in DIVERGED for stage in stages]
    tried = [bad for stage, bad in zip(stages, ended, strict=True) if bad or stage in measured]
    if not tried:
        return {}
    return {**vars(proportion(np.array(tried))), "each": [float(bad) for bad in tried], "floor": None}


def lr_sensitivity(
    run: str, study: Json, found: Evaluations, failed: dict[str, Json], own: dict[int, Json]
) -> Quantity:
    """How much fd grows at other learning rates: the larger of two ratios of fd, for the same seed.

    The interval combines the errors of both distances over samples. `value` is None if a training failed.
    """
    seed = study["seeds"][0]
    if seed not in own:
        return {}
    base = own[seed]["metrics"]["fd"]
    ratios = {}
    for trial in LR_TRIALS:
        if any(failed.get(f"{run}-{trial}-{stage}{seed}") for stage in "sm"):
            return {"value": None, "low": None, "high": None, "each": [], "floor": None, "failed": trial}
        if seed in found.get(f"{run}-{trial}", {}):
            fd = found[f"{run}-{trial}"][seed]["metrics"]["fd"]
            ratio = fd["value"] / base["value"]
            half_width = ratio * math.hypot(*((m["high"] - m["low"]) / 2 / m["value"] for m in (fd, base)))
            ratios[trial] = (ratio, half_width)
    if not ratios:
        return {}
    value, half_width = max(ratios.values())
    each = [ratios[trial][0] for trial in LR_TRIALS if trial in ratios]
    low, high = max(0.0, value - half_width), value + half_width
    return {"value": value, "low": low, "high": high, "each": each, "floor": None}


def seconds_to(run: str, study: Json, found: Evaluations, before: float = 0.0) -> Quantity:
    """CPU seconds of the shortest tried training of a run whose fd is at most `target` times its floor.

    `before` are the CPU seconds of the autoencoder and the latents; each training needs them, too.

    Each budget is a separate training of the first seed with its own schedule. `low` is the longest training whose
    fd is clearly too large, `high` the shortest whose fd is clearly small enough (None: there is none). `value` is
    None if no training reaches the target. Trainings that diverged are ignored.
    """
    seed, target = study["seeds"][0], study.get("target")
    rows = [found.get(name, {}).get(seed) for name in (_first(run, study), *(f"{run}-{t}" for t in TIME_TRIALS))]
    have = [(row["training"].get("cpu_seconds"), row["metrics"]["fd"]) for row in rows if row]
    tried = sorted(((before + seconds, fd) for seconds, fd in have if seconds), key=lambda pair: pair[0])
    if not tried or not target or len(tried) < 2 or not all(fd["floor"] for _, fd in tried):
        return {}
    enough = [seconds for seconds, fd in tried if fd["value"] <= target * fd["floor"]]
    surely = [seconds for seconds, fd in tried if fd["high"] <= target * fd["floor"]]
    short = [seconds for seconds, fd in tried if fd["low"] > target * fd["floor"]]
    return {
        "value": min(enough, default=None),
        "low": max(short, default=0.0),
        "high": min(surely, default=None),
        "each": [seconds for seconds, _ in tried],
        "floor": None,
        "tried": tried[-1][0],
    }


def likelihood(found: list[Json | None], has: str | None = None) -> Quantity:
    """Bits per dimension (nats for points) with their kind; kind `none` for a family without a likelihood."""
    have = [one for one in found if one]
    if not have:
        return {"value": None, "low": None, "high": None, "each": [], "floor": None, "kind": has or "none"}
    kept = {key: have[0][key] for key in ("kind", "method", "unit", "nfe", "bars")}
    stderr = float(np.mean([one["stderr"] for one in have]))
    return {**over_seeds(have), **kept, "stderr": stderr}


def curve(rows: list[Json]) -> list[Json]:
    """Quality against cost over seeds: [{nfe, fd, ms, ms_alone, own}], cheapest first."""
    points: dict[int, list[Json]] = {}
    for row in rows:
        for point in row["sweep"]:
            points.setdefault(point["nfe"], []).append(point)
    return [
        {
            "nfe": nfe,
            "fd": over_seeds(point["fd"] for point in at),
            "ms": float(np.mean([point["ms_per_image"] for point in at])),
            "ms_alone": float(np.mean([point["ms_alone"] for point in at])),
            "own": any(point["own"] for point in at),
        }
        for nfe, at in sorted(points.items())
    ]


def _first(run: str, study: Json) -> str:
    """The first row of a run, which trials are compared with: they sample with the same setting."""
    return next(name for name, row in study["rows"].items() if row["run"] == run)


def _likelihood_rows(run: str, study: Json, found: Evaluations) -> list[Json]:
    """The evaluations that hold the likelihood of a run: those of its first row."""
    return list(found.get(_first(run, study), {}).values())


def _rate(training: Json) -> float | None:
    seconds = training.get("cpu_seconds") or 0
    return training["images"] / seconds if seconds and training.get("images") else None
