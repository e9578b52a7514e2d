"""Propose the settings of the next trial with Ray Tune's generators and searchers, restored from the trial log.

A new searcher replays the log in chronological order, so a killed search continues with the settings that would have
come (see docs/decisions/0011-how-a-search-resumes.md).
"""

import itertools
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.variant_generator import generate_variants

from genflow.system.documents import Json
from genflow.tuning import metrics
from genflow.tuning.analysis import distribution
from genflow.tuning.reports import Report
from genflow.tuning.search import Search
from genflow.tuning.space import Domain
from genflow.tuning.trial_log import TrialLog, searcher_value

HALT = "halt"  # key of a result: an error that ends the whole search, as (code, message, hint)
PROCESS_DIED = "its process died"  # out of memory, or with its machine


class Proposer(Protocol):
    """Proposes the settings of new trials."""

    def propose(self, number: int) -> Json | None:
        """The settings of a new trial; None: there are no more."""

    def tell(self, number: int, params: Json, report: Report) -> None:
        """Add the last report of a trial that ended."""


class FixedProposer:
    """Proposes a given list of settings.

    Args:
        points: the settings, in order.
    """

    def __init__(self, points: list[Json]) -> None:
        self.points = points

    def propose(self, number: int) -> Json | None:
        return self.points[number] if number < len(self.points) else None

    def tell(self, number: int, params: Json, report: Report) -> None:
        """Ignored."""


class TpeProposer:
    """Optuna's tree-structured Parzen estimator, by Ray Tune's `OptunaSearch`.

    Args:
        search: gives the space and the metrics.
        first: settings to propose first.
    """

    def __init__(self, search: Search, first: list[Json]) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        names = list(search.metrics)
        modes = [metrics.mode(name) for name in names]
        one = len(names) == 1
        with warnings.catch_warnings(action="ignore"):
            self.inner = OptunaSearch(
                {key: distribution(domain) for key, domain in search.space.items()},
                metric=names[0] if one else names, mode=modes[0] if one else modes, points_to_evaluate=first,
                sampler=optuna.samplers.TPESampler(
                    seed=search.recipe.tune.seed, n_startup_trials=startup_trials(search)
                ),
            )  # fmt: skip
        self.names = names
        self.proposed: dict[int, Json] = {}

    def propose(self, number: int) -> Json | None:
        found = self.inner.suggest(str(number))
        self.proposed[number] = dict(found) if found else {}
        return dict(found) if found else None

    def tell(self, number: int, params: Json, report: Report) -> None:
        # Another version of Optuna may have proposed other settings: mark its own proposal as failed
        differs = self.proposed.get(number) != params
        result = None if differs else {name: searcher_value(name, report) for name in self.names}
        self.inner.on_trial_complete(str(number), result, error=differs)


def startup_trials(search: Search) -> int:
    """The number of random trials before TPE uses its model: a quarter, at least 4, at most Optuna's default of 10."""
    return max(4, min(10, search.trials // 4))


def proposer_for(search: Search, preset: Json | None) -> Proposer:
    """The proposer for `tune.searcher`.

    Args:
        search: the search.
        preset: the preset's settings, which every search except a grid tries first; None: they are not in the space.
    """
    first = [preset] if preset and search.recipe.tune.searcher != "grid" else []
    if search.recipe.tune.searcher == "tpe":
        return TpeProposer(search, first)
    return FixedProposer((first + predefined_settings(search))[: search.trials])


def predefined_settings(search: Search) -> list[Json]:
    """All points of a grid, or random settings by Ray Tune's generator; a function of the seed."""
    if search.recipe.tune.searcher == "grid":
        keys, values = list(search.space), [domain.values for domain in search.space.values()]
        return [dict(zip(keys, point, strict=True)) for point in itertools.product(*values)]
    state = np.random.RandomState(search.recipe.tune.seed)
    domains = {key: ray_domain(domain) for key, domain in search.space.items()}
    return [next(generate_variants(domains, random_state=state))[1] for _ in range(search.trials)]


def ray_domain(domain: Domain) -> Any:
    """Convert a domain to Ray Tune's."""
    if domain.values:
        return tune.choice(list(domain.values))
    if domain.integer:  # Tune excludes the upper end
        return (tune.lograndint if domain.log else tune.randint)(int(domain.low), int(domain.high) + 1)
    return (tune.loguniform if domain.log else tune.uniform)(domain.low, domain.high)


class ResumableSearcher(Searcher):
    """A Tune searcher that first suggests the logged trials that have not ended, then new settings.

    Args:
        trial_log: of the search.
        inner: proposes the settings of new trials.
        total: number of trials.
    """

    def __init__(self, trial_log: TrialLog, inner: Proposer, total: int) -> None:
        super().__init__()
        self.trial_log, self.inner, self.total = trial_log, inner, total
        self.params: dict[int, Json] = {}
        self.numbers: dict[str, int] = {}  # by Tune's trial id
        ended = set()
        for entry in trial_log.entries():
            number = entry.get("trial", -1)
            if "params" in entry:
                inner.propose(number)
                self.params[number] = entry["params"]
            elif "status" in entry and number not in ended:
                ended.add(number)
                inner.tell(number, self.params[number], last_report(trial_log, number, entry))
        self.ended = ended
        self.waiting = sorted(set(self.params) - ended)

    @property
    def left(self) -> int:
        """The number of trials that have not ended."""
        return self.total - len(self.ended)

    def suggest(self, trial_id: str) -> Any:
        if self.waiting:
            number = self.waiting.pop(0)
            self.trial_log.resume(number, self.params[number])
        else:
            number = len(self.params)
            params = self.inner.propose(number) if number < self.total else None
            if params is None:
                return Searcher.FINISHED
            self.params[number] = {key: to_python(value) for key, value in params.items()}
            self.trial_log.log_start(number, self.params[number])
        self.numbers[trial_id] = number
        return {"trial": number, "params": self.params[number]}

    def on_trial_complete(self, trial_id: str, result: Json | None = None, error: bool = False) -> None:
        number = self.numbers[trial_id]
        if result and HALT in result:
            return
        entry = end_status(self.trial_log.reports(number), error)
        self.trial_log.log_end(number, **entry)
        self.ended.add(number)
        self.inner.tell(number, self.params[number], last_report(self.trial_log, number, entry))

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file, which Tune requires; the trial log is the state."""
        Path(checkpoint_path).write_text("", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


def end_status(reports: list[Report], error: bool) -> Json:
    """The status with which a trial ended, and why."""
    if error or not reports:
        return {"status": "failed", "why": PROCESS_DIED}
    status = reports[-1].get("status") or ("finished" if reports[-1].get("share") == 1 else "stopped")
    return {"status": status, "why": reports[-1].get("why", "")}


def last_report(trial_log: TrialLog, number: int, entry: Json) -> Report:
    """The last report of a trial that has ended, with its status if it diverged or failed."""
    reports = trial_log.reports(number)
    report: Report = {**reports[-1]} if reports else {}
    if entry["status"] in ("diverged", "failed"):
        report["status"] = entry["status"]
    return report


def to_python(value: Any) -> Any:
    """Convert a numpy scalar to a Python number."""
    return value.item() if isinstance(value, np.generic) else value
