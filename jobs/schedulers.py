"""Who ends trials early, or changes them on the way: Ray Tune's ASHA and population based training, told the record."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining

from genflow.tuning import metrics
from genflow.tuning.search import Record, Search, told
from genflow.tuning.space import Space
from genflow.tuning.trial import Report
from jobs.proposers import plain, ray_domain

Document = dict[str, Any]


class Halving(ASHAScheduler):
    """Asynchronous successive halving that has been told what the record holds of trials that are over.

    Args:
        search: with its rungs.
        record: of the search.
    """

    def __init__(self, search: Search, record: Record) -> None:
        tuned, metric = search.recipe.tune, search.metrics[0]
        super().__init__(
            time_attr="rung", metric=metric, mode=metrics.mode(metric), max_t=tuned.reduction ** (tuned.rungs - 1),
            grace_period=1, reduction_factor=tuned.reduction, stop_last_trials=True,
        )  # fmt: skip
        for number in [entry["trial"] for entry in record.entries() if "status" in entry]:
            trial: Any = SimpleNamespace(trial_id=f"record-{number}")
            self.on_trial_add(None, trial)  # type: ignore[arg-type]
            for index, report in enumerate(record.reports(number)):
                self.on_trial_result(None, trial, result_of((metric,), report, index, tuned.reduction))  # type: ignore[arg-type]


def result_of(names: tuple[str, ...], report: Report, rung: int, reduction: int) -> Document:
    """A report as Tune takes it; `rung` is its place in multiples of the first, `turn` by count."""
    return {"rung": reduction**rung, "turn": rung + 1, **{name: told(name, report) for name in names}}


def population(search: Search) -> PopulationBasedTraining:
    """Population based training: at every rung the worst quarter goes on from the best quarter's weights, with their
    settings changed. All wait for each other, so that they are compared at one share of the budget.

    References:
        Population Based Training of Neural Networks (Jaderberg et al., 2017)   https://arxiv.org/abs/1711.09846
    """
    metric, seed = search.metrics[0], search.recipe.tune.seed
    random.seed(seed)  # it draws from the global generators
    np.random.seed(seed)
    changes = {key: list(d.values) if d.values else ray_domain(d) for key, d in search.space.items()}
    return PopulationBasedTraining(
        time_attr="turn", metric=metric, mode=metrics.mode(metric), perturbation_interval=1, synch=True,
        hyperparam_mutations={"params": changes}, custom_explore_fn=Within(search.space), log_config=False,
    )  # fmt: skip


class Within:
    """Brings settings that were multiplied by 0.8 or 1.2 back into the space.

    Args:
        space: of the search.
    """

    def __init__(self, space: Space) -> None:
        self.space = space

    def __call__(self, config: Document) -> Document:
        params = {}
        for key, value in config["params"].items():
            domain = self.space.get(key)
            if domain is not None and not domain.values:
                value = min(max(plain(value), domain.low), domain.high)
                value = round(value) if domain.whole else float(value)
            params[key] = plain(value)
        return {**config, "params": params}
