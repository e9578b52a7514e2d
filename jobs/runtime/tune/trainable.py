"""Run the trials of a search on Ray Tune: the trainable of one trial, and the Tune run of all.

`genflow.tuning.trial` defines a trial and its files; this module only runs it. Tune's own snapshots are not used,
because the search's trial log is written at every event.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from genflow.errors import BY_CODE, ResourceError, SetupError
from genflow.storage.store import Store
from genflow.system.documents import Json
from genflow.tuning import metrics
from genflow.tuning.trial import Task, Trial, TrialContext
from jobs.runtime import gpus as gpus_in_ray
from jobs.runtime import resources
from jobs.runtime.tune.asha import tune_result
from jobs.runtime.tune.pbt import RungSearcher
from jobs.runtime.tune.searchers import HALT, ResumableSearcher


@functools.lru_cache(maxsize=2)
def trial_context(task: Task) -> TrialContext:
    """The shards and features of a search, opened once in a process that runs many of its trials."""
    return TrialContext(task)


class TuneTrainable(tune.Trainable):
    """A trial as a Ray Tune trainable: one step is one rung. The process is reused for the next trial."""

    def setup(self, config: Json) -> None:
        given: Json = {key: tuple(v) if isinstance(v, list) else v for key, v in config["task"].items()}
        task = Task(**given)
        gpus_in_ray.claim(config.get("device", "auto"))
        self.reduction, self.rung = config["reduction"], config.get("rung", 0)
        self.rungs = config["rung"] + 1 if "rung" in config else len(task.shares)  # PBT: one rung a run
        self.task, self.names = task, task.metrics
        self.number, self.params = config["trial"], config["params"]
        self.trial: Trial | None = None

    def reset_config(self, new_config: Json) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> Json:
        try:
            self.trial = self.trial or Trial(trial_context(self.task), self.number, self.params)
            report = self.trial.report(self.rung)
        except (ResourceError, SetupError) as error:  # every other trial would end with it, too
            # Tune requires the metrics in every result
            placeholder = tune_result(self.names, {"status": "failed"}, self.rung, self.reduction)
            return {**placeholder, HALT: (error.code, error.message, error.hint), "done": True}
        result = tune_result(self.names, report, self.rung, self.reduction)
        self.rung += 1
        over = bool(report.get("status")) or self.rung >= self.rungs
        return {**result, "done": over}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: the state is in the trial's folder."""

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        """Nothing to load."""


class ReportCallback(tune.Callback):
    """Calls a function after every report and every end of a trial.

    Args:
        on_report: called with a trial's number, and with whether the trial has ended.
    """

    def __init__(self, on_report: Callable[[int, bool], None]) -> None:
        self.on_report = on_report

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Json, **info: Any) -> None:
        self.on_report(trial.config["trial"], False)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_report(trial.config["trial"], True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_report(trial.config["trial"], True)


class StopOnTarget(tune.Stopper):
    """Ends the search once a trial has reached the target at the last rung, or a result has `HALT`.

    Args:
        metric: the search's first metric.
        target: value of the metric; None: no target.
        last: the last rung, in multiples of the first.
    """

    def __init__(self, metric: str, target: float | None, last: int) -> None:
        self.metric, self.target, self.last, self.reached = metric, target, last, False
        self.halt: tuple[int, str, str] | None = None

    def __call__(self, trial_id: str, result: Json) -> bool:
        self.halt = self.halt or result.get(HALT)
        if self.target is not None and result.get("rung") == self.last:
            value = result[self.metric]
            self.reached |= value == self.target or metrics.is_better(self.metric, value, self.target)
        return False

    def stop_all(self) -> bool:
        return self.reached or self.halt is not None


def run_trials(
    task: Task, searcher: ResumableSearcher | RungSearcher, scheduler: TrialScheduler | None,
    on_report: Callable[[int, bool], None], *, workers: int, cpus: float, gpus: float, reduction: int = 2,
    seconds: float | None = None, target: float | None = None, device: str = "auto",
) -> None:  # fmt: skip
    """Run the trials that are left, on the Ray that this process is connected to.

    Args:
        task: shared by all trials.
        searcher: suggests the trials.
        scheduler: stops trials early; None: no early stopping.
        on_report: called after each report and each end, with the trial's number and whether it has ended.
        workers: concurrent trials.
        cpus: CPUs for each trial.
        gpus: GPUs for each trial; with a fraction, trials share one.
        reduction: factor between two rungs.
        seconds: time budget, after which all trials stop; None: no limit.
        target: value of the first metric at which to stop.
        device: that a trial asks for; auto: the GPU that Ray gives it, else the CPU.

    Raises:
        GenflowError: an error that would end every trial: a full disk, or a store that cannot be reached.
    """
    name = f"{Path(task.folder).parent.name}-{time.time_ns():x}"  # a new name every time: Tune does not resume
    store = Store(task.store)
    stop = StopOnTarget(task.metrics[0], target, reduction ** (len(task.shares) - 1))
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(TuneTrainable, {"CPU": cpus, **({"GPU": gpus} if gpus else {})}),
        param_space={"task": asdict(task), "reduction": reduction, "device": device},
        tune_config=tune.TuneConfig(
            num_samples=searcher.left, search_alg=searcher, scheduler=scheduler or FIFOScheduler(), reuse_actors=True,
            max_concurrent_trials=workers, time_budget_s=seconds, trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=name, **resources.storage(store), verbose=0, stop=stop, callbacks=[ReportCallback(on_report)],
            failure_config=tune.FailureConfig(max_failures=2),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )  # fmt: skip
    try:
        _fit_in_thread(tuner)
    finally:
        resources.delete_storage(store, name)
    if stop.halt:
        code, *words = stop.halt
        raise BY_CODE[code](*words)


def _fit_in_thread(tuner: tune.Tuner) -> None:
    """Call `fit` in a second thread, because Tune handles Ctrl-C itself in the main thread."""
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
