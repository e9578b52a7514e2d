"""Who says what a search tries next: by Ray Tune's own generators and searchers, behind the search's trial_log.

The log is told to a fresh searcher in the order in which it happened; so a search that was killed goes on with the
settings that would have come (see docs/decisions/0011-how-a-search-resumes.md).
"""

import itertools
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.variant_generator import generate_variants

from genflow.tuning import metrics
from genflow.tuning.analysis import distribution
from genflow.tuning.reports import Report
from genflow.tuning.search import Search
from genflow.tuning.space import Domain
from genflow.tuning.trial_log import TrialLog, searcher_value

Document = dict[str, Any]
HALT = "halt"  # in a result: what ends the whole search, as an error's code, message and hint
PROCESS_DIED = "its process died"  # of memory, or with its machine


class Proposer(Protocol):
    """Who says what to try next."""

    def propose(self, number: int) -> Document | None:
        """The settings of a trial; None: there are no more."""

    def tell(self, number: int, params: Document, report: Report) -> None:
        """How it ended."""


class FixedProposer:
    """Settings that are known beforehand.

    Args:
        points: in order.
    """

    def __init__(self, points: list[Document]) -> None:
        self.points = points

    def propose(self, number: int) -> Document | None:
        return self.points[number] if number < len(self.points) else None

    def tell(self, number: int, params: Document, report: Report) -> None:
        """It changes nothing."""


class TpeProposer:
    """Optuna's tree-structured Parzen estimator, by Ray Tune's `OptunaSearch`, after the preset itself.

    Args:
        search: whose space and metrics.
        first: settings to begin with.
    """

    def __init__(self, search: Search, first: list[Document]) -> None:
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
        self.proposed: dict[int, Document] = {}

    def propose(self, number: int) -> Document | None:
        found = self.inner.suggest(str(number))
        self.proposed[number] = dict(found) if found else {}
        return dict(found) if found else None

    def tell(self, number: int, params: Document, report: Report) -> None:
        # Settings that the trial_log has and this Optuna would not propose come from another version of it
        differs = self.proposed.get(number) != params
        result = None if differs else {name: searcher_value(name, report) for name in self.names}
        self.inner.on_trial_complete(str(number), result, error=differs)


def startup_trials(search: Search) -> int:
    """Trials at random before TPE models anything: a quarter, at least 4, at most Optuna's own 10."""
    return max(4, min(10, search.trials // 4))


def proposer_for(search: Search, preset: Document | None) -> Proposer:
    """The search's proposer.

    Args:
        search: with `tune.searcher`.
        preset: the preset's own settings, which any search but a grid tries first; None: they are not in the space.
    """
    first = [preset] if preset and search.recipe.tune.searcher != "grid" else []
    if search.recipe.tune.searcher == "tpe":
        return TpeProposer(search, first)
    return FixedProposer((first + predefined_settings(search))[: search.trials])


def predefined_settings(search: Search) -> list[Document]:
    """A grid's points, or as many at random, by Ray Tune's own generator; a function of the seed."""
    if search.recipe.tune.searcher == "grid":
        keys, values = list(search.space), [domain.values for domain in search.space.values()]
        return [dict(zip(keys, point, strict=True)) for point in itertools.product(*values)]
    state = np.random.RandomState(search.recipe.tune.seed)
    domains = {key: ray_domain(domain) for key, domain in search.space.items()}
    return [next(generate_variants(domains, random_state=state))[1] for _ in range(search.trials)]


def ray_domain(domain: Domain) -> Any:
    """A domain as Ray Tune has it."""
    if domain.values:
        return tune.choice(list(domain.values))
    if domain.integer:  # Tune leaves the upper end out
        return (tune.lograndint if domain.log else tune.randint)(int(domain.low), int(domain.high) + 1)
    return (tune.loguniform if domain.log else tune.uniform)(domain.low, domain.high)


class ResumableSearcher(Searcher):
    """A proposer behind a search's trial_log: what was proposed is proposed again, what has ended is over.

    Args:
        trial_log: of the search.
        inner: who proposes what is not recorded.
        total: trials in all.
    """

    def __init__(self, trial_log: TrialLog, inner: Proposer, total: int) -> None:
        super().__init__()
        self.trial_log, self.inner, self.total = trial_log, inner, total
        self.params: dict[int, Document] = {}
        self.numbers: dict[str, int] = {}  # by Tune's own id
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
        """Trials that are not over."""
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

    def on_trial_complete(self, trial_id: str, result: Document | None = None, error: bool = False) -> None:
        number = self.numbers[trial_id]
        if result and HALT in result:
            return
        entry = end_status(self.trial_log.reports(number), error)
        self.trial_log.log_end(number, **entry)
        self.ended.add(number)
        self.inner.tell(number, self.params[number], last_report(self.trial_log, number, entry))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trial_log is the state. Tune wants a file."""
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


def end_status(reports: list[Report], error: bool) -> Document:
    """How a trial ended: its status, and why."""
    if error or not reports:
        return {"status": "failed", "why": PROCESS_DIED}
    status = reports[-1].get("status") or ("finished" if reports[-1].get("share") == 1 else "stopped")
    return {"status": status, "why": reports[-1].get("why", "")}


def last_report(trial_log: TrialLog, number: int, entry: Document) -> Report:
    """The last report of a trial that is over, with how it ended."""
    reports = trial_log.reports(number)
    report: Report = {**reports[-1]} if reports else {}
    if entry["status"] in ("diverged", "failed"):
        report["status"] = entry["status"]
    return report


def to_python(value: Any) -> Any:
    """A number without numpy."""
    return value.item() if isinstance(value, np.generic) else value
