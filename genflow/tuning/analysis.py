"""Analyse a search: the best trial, the Pareto front, the importance of each key, the confirmation.

The best of many noisy values is biased: the search selected it partly for its luck. So the best settings and the
preset are trained again with fresh seeds that the search has not used, and only their difference counts.
"""

from typing import Any

import numpy as np

from genflow.evaluation import interval
from genflow.system.documents import Json
from genflow.tuning import metrics
from genflow.tuning.reports import Row
from genflow.tuning.space import Domain, Space

MIN_TRIALS = 5  # trials below which no importance is computed


def best(rows: list[Row], metric: str) -> Row | None:
    """The trial with the best value among those measured at the largest share of their budget."""
    good = [row for row in rows if metric in row["values"] and row["status"] in ("finished", "stopped")]
    if not good:
        return None
    longest = max(row["share"] for row in good)
    good = [row for row in good if row["share"] == longest]
    return (min if metrics.mode(metric) == "min" else max)(good, key=lambda row: row["values"][metric])


def pareto_front(rows: list[Row], names: tuple[str, ...]) -> list[Row]:
    """The Pareto front of the finished trials: no other trial is as good in all metrics and better in one."""
    good = [row for row in rows if row["status"] == "finished" and all(name in row["values"] for name in names)]

    def costs(row: Row) -> np.ndarray:
        return np.array([row["values"][name] * (1 if metrics.mode(name) == "min" else -1) for name in names])

    def is_dominated(row: Row) -> bool:
        return any((costs(other) <= costs(row)).all() and (costs(other) < costs(row)).any() for other in good)

    return sorted((row for row in good if not is_dominated(row)), key=lambda row: costs(row)[0])


def importance(rows: list[Row], space: Space, metric: str, seed: int = 0) -> dict[str, float]:
    """The share of the metric's variance that each key explains by itself (fANOVA); empty if there are too few trials.

    Only trials that were measured last at the same rung are compared; the rung with the most trials is used.

    References:
        An Efficient Approach for Assessing Hyperparameter Importance (Hutter, Hoos, Leyton-Brown, 2014)
    """
    import optuna

    usable = [
        row for row in rows
        if metric in row["values"] and row["status"] in ("finished", "stopped")
        and all(space[key].contains(row["params"].get(key)) for key in space)
    ]  # fmt: skip
    shares = [row["share"] for row in usable]
    if not shares:
        return {}
    common = max(sorted(set(shares), reverse=True), key=shares.count)
    usable = [row for row in usable if row["share"] == common]
    varying = [key for key in space if len({str(row["params"][key]) for row in usable}) > 1]
    if len(usable) < MIN_TRIALS or not varying or len({row["values"][metric] for row in usable}) < 2:
        return {}
    if len(varying) == 1:
        return {varying[0]: 1.0}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    forms = {key: distribution(space[key]) for key in varying}
    for row in usable:
        params = {key: row["params"][key] for key in varying}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=forms, value=row["values"][metric]))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: round(float(value), 4) for key, value in found.items()}


def distribution(domain: Domain) -> Any:
    """Convert a domain to Optuna's distribution."""
    from optuna import distributions

    if domain.values:
        return distributions.CategoricalDistribution(domain.values)
    if domain.integer:
        return distributions.IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return distributions.FloatDistribution(domain.low, domain.high, log=domain.log)


def confirmation(best_rows: list[Row], preset_rows: list[Row], metric: str) -> Json | None:
    """Compare best and preset seed by seed: the mean difference and its 95 % interval (Student's t over seeds).

    Args:
        best_rows: the trials of the best settings, one for each seed.
        preset_rows: the trials of the preset, with the same seeds in the same order.
        metric: the search's first metric.

    Returns:
        {seeds, best, preset, difference {value, low, high, n}, upheld}; None if no pair was measured.
    """
    pairs = [
        (a["values"][metric], b["values"][metric]) for a, b in zip(best_rows, preset_rows, strict=True)
        if a["status"] == b["status"] == "finished"
    ]  # fmt: skip
    if not pairs:
        return None
    a, b = np.array(pairs).T
    found = interval.mean(a - b)
    finite = len(pairs) > 1
    upheld = finite and (found.high < 0 if metrics.mode(metric) == "min" else found.low > 0)
    difference = {"value": found.value, "low": found.low if finite else None, "high": found.high if finite else None}
    return {
        "seeds": len(pairs), "best": a.tolist(), "preset": b.tolist(), "difference": {**difference, "n": len(pairs)},
        "upheld": bool(upheld),
    }  # fmt: skip


def confirmation_text(found: Json, metric: str) -> str:
    """The confirmation as one sentence."""
    gap, seeds = found["difference"], found["seeds"]
    if gap["low"] is None:
        return f"one fresh seed: {metric} differs from the preset's by {gap['value']:+.3g}; one seed gives no interval"
    said = "confirmed" if found["upheld"] else "not confirmed"
    ends = f"{gap['low']:+.3g} to {gap['high']:+.3g}"
    return f"{said} on {seeds} fresh seeds: {metric} differs from the preset's by {gap['value']:+.3g} (95 %: {ends})"
