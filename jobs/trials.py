"""The trials of a search on Ray Tune: who proposes settings, who stops a trial, and what carries one out.

What a trial is, and what it leaves, is `genflow.tuning.trial`; here is only where it runs. Tune's own snapshots are not
used: the search's record is written at every event, and is told to the searcher and the scheduler again (see
docs/decisions/0011-how-a-search-goes-on.md).
"""

import functools
import itertools
import logging
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.variant_generator import generate_variants

from genflow.errors import BY_CODE, ResourceError, SetupError
from genflow.tuning import metrics
from genflow.tuning.findings import distribution
from genflow.tuning.search import Record, Search, told
from genflow.tuning.space import Domain
from genflow.tuning.trial import Bench, Report, Task, Trial

Document = dict[str, Any]
HALT = "halt"  # in a result: what ends the whole search, as an error's code, message and hint
LOST = "its process died"  # of memory, or with its machine


# --- Who proposes


class Proposer(Protocol):
    """Who says what to try next."""

    def propose(self, number: int) -> Document | None:
        """The settings of a trial; None: there are no more."""

    def tell(self, number: int, params: Document, report: Report) -> None:
        """How it ended."""


class Points:
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


class Tpe:
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
                sampler=optuna.samplers.TPESampler(seed=search.recipe.tune.seed, n_startup_trials=startup(search)),
            )  # fmt: skip
        self.names = names
        self.proposed: dict[int, Document] = {}

    def propose(self, number: int) -> Document | None:
        found = self.inner.suggest(str(number))
        self.proposed[number] = dict(found) if found else {}
        return dict(found) if found else None

    def tell(self, number: int, params: Document, report: Report) -> None:
        # Settings that the record has and this Optuna would not propose come from another version of it
        mistaken = self.proposed.get(number) != params
        result = None if mistaken else {name: told(name, report) for name in self.names}
        self.inner.on_trial_complete(str(number), result, error=mistaken)


def startup(search: Search) -> int:
    """Trials at random before TPE models anything: a quarter, at least 4, at most Optuna's own 10."""
    return max(4, min(10, search.trials // 4))


def proposer(search: Search, preset: Document | None) -> Proposer:
    """The search's proposer.

    Args:
        search: with `tune.searcher`.
        preset: the preset's own settings, which any search but a grid tries first; None: they are not in the space.
    """
    first = [preset] if preset and search.recipe.tune.searcher != "grid" else []
    if search.recipe.tune.searcher == "tpe":
        return Tpe(search, first)
    return Points((first + drawn(search))[: search.trials])


def drawn(search: Search) -> list[Document]:
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
    if domain.whole:  # Tune leaves the upper end out
        return (tune.lograndint if domain.log else tune.randint)(int(domain.low), int(domain.high) + 1)
    return (tune.loguniform if domain.log else tune.uniform)(domain.low, domain.high)


class Recorded(Searcher):
    """A proposer behind a search's record: what was proposed is proposed again, what has ended is over.

    Args:
        record: of the search.
        inner: who proposes what is not recorded.
        total: trials in all.
    """

    def __init__(self, record: Record, inner: Proposer, total: int) -> None:
        super().__init__()
        self.record, self.inner, self.total = record, inner, total
        self.params: dict[int, Document] = {}
        self.numbers: dict[str, int] = {}  # by Tune's own id
        ended = set()
        for entry in record.entries():
            number = entry.get("trial", -1)
            if "params" in entry:
                inner.propose(number)
                self.params[number] = entry["params"]
            elif "status" in entry and number not in ended:
                ended.add(number)
                inner.tell(number, self.params[number], end_of(record, number, entry))
        self.ended = ended
        self.waiting = sorted(set(self.params) - ended)

    @property
    def left(self) -> int:
        """Trials that are not over."""
        return self.total - len(self.ended)

    def suggest(self, trial_id: str) -> Any:
        if self.waiting:
            number = self.waiting.pop(0)
        else:
            number = len(self.params)
            params = self.inner.propose(number) if number < self.total else None
            if params is None:
                return Searcher.FINISHED
            self.params[number] = {key: plain(value) for key, value in params.items()}
            self.record.begun(number, self.params[number])
        self.numbers[trial_id] = number
        return {"trial": number, "params": self.params[number]}

    def on_trial_complete(self, trial_id: str, result: Document | None = None, error: bool = False) -> None:
        number = self.numbers[trial_id]
        if result and HALT in result:
            return
        reports = self.record.reports(number)
        entry: Document = {"status": "failed", "why": LOST}
        if reports and not error:
            status = reports[-1].get("status") or ("finished" if reports[-1].get("share") == 1 else "stopped")
            entry = {"status": status, "why": reports[-1].get("why", "")}
        self.record.ended(number, **entry)
        self.ended.add(number)
        self.inner.tell(number, self.params[number], end_of(self.record, number, entry))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state. Tune wants a file."""
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


def end_of(record: Record, number: int, entry: Document) -> Report:
    """The last report of a trial that is over, with how it ended."""
    reports = record.reports(number)
    status = {"status": entry["status"]} if entry["status"] in ("diverged", "failed") else {}
    return {**(reports[-1] if reports else {}), **status}


def plain(value: Any) -> Any:
    """A number without numpy."""
    return value.item() if isinstance(value, np.generic) else value


# --- Who stops


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
    """A report as Tune takes it; `rung` is its place in multiples of the first."""
    return {"rung": reduction**rung, **{name: told(name, report) for name in names}}


# --- What carries a trial out


@functools.lru_cache(maxsize=2)
def bench(task: Task) -> Bench:
    """The shards and features of a search, opened once in a process that carries out many of its trials."""
    return Bench(task)


class Carrier(tune.Trainable):
    """A trial as Ray Tune carries one out: a step is a rung. The process is used again for the next trial."""

    def setup(self, config: Document) -> None:
        given: Document = {key: tuple(v) if isinstance(v, list) else v for key, v in config["task"].items()}
        task = Task(**given)
        self.reduction, self.rung = config["reduction"], 0
        self.rungs = len(task.shares)
        self.task, self.names = task, task.metrics
        self.number, self.params = config["trial"], config["params"]
        self.trial: Trial | None = None

    def reset_config(self, new_config: Document) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> Document:
        try:
            self.trial = self.trial or Trial(bench(self.task), self.number, self.params)
            report = self.trial.report(self.rung)
        except (ResourceError, SetupError) as error:  # it would end every trial
            return {HALT: (error.code, error.message, error.hint), "done": True}
        result = result_of(self.names, report, self.rung, self.reduction)
        self.rung += 1
        over = bool(report.get("status")) or self.rung >= self.rungs
        return {**result, "done": over}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the trial's folder holds it."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""


class Watch(tune.Callback):
    """Tells of every report and every end, and of what somebody waits for.

    Args:
        told: called with a trial's number after each report, and with whether it is over.
    """

    def __init__(self, told: Callable[[int, bool], None]) -> None:
        self.told = told

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Document, **info: Any) -> None:
        self.told(trial.config["trial"], False)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.told(trial.config["trial"], True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.told(trial.config["trial"], True)


class Reached(tune.Stopper):
    """Ends the search once a trial, measured in full, has reached the target.

    Args:
        metric: the first.
        target: its value.
        last: the rung at which a trial is measured in full.
    """

    def __init__(self, metric: str, target: float | None, last: int) -> None:
        self.metric, self.target, self.last, self.reached = metric, target, last, False
        self.halt: tuple[int, str, str] | None = None

    def __call__(self, trial_id: str, result: Document) -> bool:
        self.halt = self.halt or result.get(HALT)
        if self.target is not None and result.get("rung") == self.last:
            value = result[self.metric]
            self.reached |= value == self.target or metrics.is_better(self.metric, value, self.target)
        return False

    def stop_all(self) -> bool:
        return self.reached or self.halt is not None


def carry_out(
    task: Task, searcher: Recorded, scheduler: TrialScheduler | None, watch: Callable[[int, bool], None], *,
    workers: int, cpus: float, gpus: float, reduction: int = 2, seconds: float | None = None,
    target: float | None = None,
) -> None:  # fmt: skip
    """Carry out the trials that are left, on the Ray that this process is connected to.

    Args:
        task: what they have in common.
        searcher: who says which.
        scheduler: who stops them; None: nobody.
        watch: told of each report and each end.
        workers: trials at once.
        cpus: of each.
        gpus: of each; a fraction shares one.
        reduction: between two rungs.
        seconds: after which no trial goes on; None: no limit.
        target: of the first metric, at which to stop.

    Raises:
        GenflowError: what would end every trial: a full disk, a store out of reach.
    """
    name = f"{Path(task.folder).parent.name}-{time.time_ns():x}"  # the record goes on, not this name
    storage = Path(task.store) / "ray"
    stop = Reached(task.metrics[0], target, reduction ** (len(task.shares) - 1))
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(Carrier, {"CPU": cpus, **({"GPU": gpus} if gpus else {})}),
        param_space={"task": asdict(task), "reduction": reduction},
        tune_config=tune.TuneConfig(
            num_samples=searcher.left, search_alg=searcher, scheduler=scheduler or FIFOScheduler(), reuse_actors=True,
            max_concurrent_trials=workers, time_budget_s=seconds, trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=str(storage), verbose=0, callbacks=[Watch(watch)], stop=stop,
            failure_config=tune.FailureConfig(max_failures=2),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )  # fmt: skip
    try:
        _wait(tuner)
    finally:
        shutil.rmtree(storage / name, ignore_errors=True)
    if stop.halt:
        code, *words = stop.halt
        raise BY_CODE[code](*words)


def _wait(tuner: tune.Tuner) -> None:
    """Fit, beside the main thread: in it, Tune would turn Ctrl-C into something of its own."""
    outcome: list[Any] = []

    def fit() -> None:
        try:
            outcome.append(tuner.fit())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
