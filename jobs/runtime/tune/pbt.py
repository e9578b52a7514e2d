"""Population-based training on Ray: members train up to a rung, then Ray Tune's algorithm decides the exploits.

Tune would keep all members alive and paused, with their weights in its own checkpoints, which do not survive the
driver. So each rung is one Tune run, and `PopulationBasedTraining` is called between two rungs.
"""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.search import Searcher

from genflow.maths import rng
from genflow.storage.store import Store
from genflow.system.documents import Json
from genflow.tuning import metrics, pbt
from genflow.tuning.search import Search
from genflow.tuning.space import Space
from genflow.tuning.trial_log import TrialLog, searcher_value
from jobs.runtime.tune.searchers import HALT, end_status, predefined_settings, ray_domain, to_python


def train(
    store: Store, search: Search, trial_log: TrialLog, preset: Json | None,
    run_trials: Callable[["RungSearcher"], None],
) -> None:  # fmt: skip
    """Train a population, or resume it.

    Args:
        store: holds the members' weights.
        search: the search.
        trial_log: of the search.
        preset: the preset's settings, with which the first member starts; None: they are not in the space.
        run_trials: trains the members of a rung that have not been measured at it.
    """
    first = [preset] if preset and search.recipe.tune.searcher != "grid" else []
    first = [fit_to_space(params, search.space) for params in (first + predefined_settings(search))[: search.trials]]
    for rung in range(len(search.shares)):
        if rung and not pbt.is_copied(trial_log, rung):
            exploit(store, search, trial_log, rung)
        members = RungSearcher(trial_log, rung, len(search.shares), first)
        if members.left:
            run_trials(members)
            if members.left:  # out of time, or the target is reached
                return


def exploit(store: Store, search: Search, trial_log: TrialLog, rung: int) -> None:
    """Between two rungs: decide the exploits, log them, and copy the weights."""
    found = pbt.exploits_at(trial_log, rung)
    if found is None:
        found = decide_exploits(search, trial_log, rung)
        trial_log.append({"turn": rung, "taken": found})
    for number, source in found.items():
        pbt.copy_weights(store, trial_log.folder, int(number), source["from"])
    trial_log.append({"turn": rung, "done": True})


class Member:
    """A paused trial, as far as `PopulationBasedTraining` uses it."""

    status, experiment_tag = "PAUSED", ""

    def __init__(self, number: int, params: Json) -> None:
        self.number, self.config = number, params
        self.trial_id, self.checkpoint = str(number), SimpleNamespace(number=number)
        self.temporary_state = SimpleNamespace(saving_to=None)
        self.evaluated_params: Json = {}
        self.manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        self.run_metadata = SimpleNamespace(checkpoint_manager=self.manager)

    def is_finished(self) -> bool:
        return False

    def set_config(self, config: Json) -> None:
        self.config = config

    def set_experiment_tag(self, tag: str) -> None:
        """Ignored."""

    @property
    def source(self) -> int:
        """The member whose weights it continues from."""
        found = getattr(self.manager, "_latest_checkpoint_result", None)
        return found.checkpoint.number if found else self.number


def decide_exploits(search: Search, trial_log: TrialLog, rung: int) -> Json:
    """The exploits before a rung, {member: {from, params}}; a function of the seed and the reports.

    Each member of the worst quarter copies a random member of the best quarter. Each of its settings is drawn again
    with probability 1/4, else multiplied by 0.8 or 1.2 (a choice: moved to a neighbour), and clamped to the space.
    """
    metric = search.metrics[0]
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it would log each change
    scheduler = PopulationBasedTraining(
        time_attr="turn", metric=metric, mode=metrics.mode(metric), perturbation_interval=1, synch=True,
        log_config=False,
        hyperparam_mutations={k: list(d.values) if d.values else ray_domain(d) for k, d in search.space.items()},
        custom_explore_fn=lambda params: fit_to_space(params, search.space),
    )  # fmt: skip
    rows = [row for row in trial_log.rows() if row["status"] == "running"]
    members = [Member(row["trial"], pbt.settings_at(trial_log, row["trial"], rung - 1)) for row in rows]
    controller: Any = SimpleNamespace(
        get_trials=lambda: members, get_live_trials=lambda: members, search_alg=None,
    )  # fmt: skip
    before = random.getstate(), np.random.get_state()
    try:  # the scheduler draws from the global generators
        random.seed(rng.key(search.recipe.tune.seed, "population", rung))
        np.random.seed(random.getrandbits(32))
        for member in members:
            scheduler.on_trial_add(controller, member)  # type: ignore[arg-type]
        for member in members:
            value = searcher_value(metric, trial_log.reports(member.number)[rung - 1])
            scheduler.on_trial_result(controller, member, {"turn": 1, metric: value})  # type: ignore[arg-type]
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    changed = [member for member in members if member.source != member.number]
    return {str(member.number): {"from": member.source, "params": member.config} for member in changed}


def fit_to_space(params: Json, space: Space) -> Json:
    """Clamp settings to the space, and convert them to its types."""
    found = {}
    for key, domain in space.items():
        value = to_python(params[key])
        if not domain.values:
            value = min(max(value, domain.low), domain.high)
            value = round(value) if domain.integer else float(value)
        found[key] = value
    return found


class RungSearcher(Searcher):
    """A Tune searcher that suggests the members that have not been measured at a rung.

    Args:
        trial_log: of the search.
        rung: the rung, counted from 0.
        rungs: the number of rungs.
        first: every member's initial settings.
    """

    def __init__(self, trial_log: TrialLog, rung: int, rungs: int, first: list[Json]) -> None:
        super().__init__()
        self.trial_log, self.rung, self.last, self.first = trial_log, rung, rung == rungs - 1, first
        self.started = {entry["trial"] for entry in trial_log.entries() if "params" in entry}
        for row in trial_log.rows():  # killed after the report and before the end was logged
            reports = trial_log.reports(row["trial"])
            if row["status"] == "running" and reports and (reports[-1].get("status") or len(reports) == rungs):
                trial_log.log_end(row["trial"], **end_status(reports, error=False))
        self.waiting = [number for number in range(len(first)) if self._waits(number)]
        self.numbers: dict[str, int] = {}  # by Tune's trial id

    @property
    def left(self) -> int:
        """The number of members that are left to train at this rung."""
        return sum(self._waits(number) for number in range(len(self.first)))

    def _waits(self, number: int) -> bool:
        over = any(entry.get("trial") == number and "status" in entry for entry in self.trial_log.entries())
        return not over and len(self.trial_log.reports(number)) <= self.rung

    def suggest(self, trial_id: str) -> Any:
        if not self.waiting:
            return Searcher.FINISHED
        number = self.waiting.pop(0)
        log = self.trial_log.resume if number in self.started else self.trial_log.log_start
        log(number, self.first[number])
        self.numbers[trial_id] = number
        return {"trial": number, "params": pbt.settings_at(self.trial_log, number, self.rung), "rung": self.rung}

    def on_trial_complete(self, trial_id: str, result: Json | None = None, error: bool = False) -> None:
        number, reports = self.numbers[trial_id], self.trial_log.reports(self.numbers[trial_id])
        if result and HALT in result:
            return
        if error or (len(reports) > self.rung and (self.last or reports[-1].get("status"))):
            self.trial_log.log_end(number, **end_status(reports, error))

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file, which Tune requires; the trial log is the state."""
        Path(checkpoint_path).write_text("", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
