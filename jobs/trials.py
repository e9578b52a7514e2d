"""The trials of a search on Ray Tune: what carries one out, and what watches over all of them.

What a trial is, and what it leaves, is `genflow.tuning.trial`; here is only where it runs. Tune's own snapshots are not
used: the search's record is written at every event.
"""

import functools
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from genflow.errors import BY_CODE, ResourceError, SetupError
from genflow.tuning import metrics
from genflow.tuning.search import Record
from genflow.tuning.trial import CHECKPOINTS, Bench, Task, Trial, latest, read_reports, trial_folder
from jobs.proposers import HALT, Recorded, ending
from jobs.schedulers import result_of

Document = dict[str, Any]


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
        if config.get("population"):  # what was measured is over: the others have gone on since
            self.rung = len(read_reports(bench(task).folder(config["trial"])))
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
        """Its weights, for another of the population to go on from."""
        folder = bench(self.task).folder(self.number)
        Path(checkpoint_dir, "trial.json").write_text(json.dumps({"trial": self.number}))
        if (folder / CHECKPOINTS).is_dir():  # a rehearsal has none
            shutil.copytree(folder / CHECKPOINTS, Path(checkpoint_dir, CHECKPOINTS))

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        """Another's weights, with the settings that this trial got since; its own are in its folder."""
        if json.loads(Path(checkpoint_dir, "trial.json").read_text())["trial"] == self.number:
            return
        if not Path(checkpoint_dir, CHECKPOINTS).is_dir():
            return
        folder = bench(self.task).folder(self.number)
        taken = folder / f"{CHECKPOINTS}.tmp"
        shutil.rmtree(taken, ignore_errors=True)
        shutil.copytree(Path(checkpoint_dir, CHECKPOINTS), taken)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        taken.rename(folder / CHECKPOINTS)
        self.trial = None


class Watch(tune.Callback):
    """Tells of every report and every end, and of what somebody waits for.

    Args:
        told: called with a trial's number after each report, and with whether it is over.
        over: called with the number of a trial that is over, where no searcher keeps the record.
    """

    def __init__(self, told: Callable[[int, bool], None], over: Callable[[int, bool], None] | None = None) -> None:
        self.told, self.over = told, over

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Document, **info: Any) -> None:
        self.told(trial.config["trial"], False)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.over:
            self.over(trial.config["trial"], False)
        self.told(trial.config["trial"], True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.over:
            self.over(trial.config["trial"], True)
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


class Population:
    """Members that train side by side, each known beforehand; the record is kept here.

    Args:
        record: of the search.
        members: every member's first settings.
    """

    def __init__(self, record: Record, members: list[Document]) -> None:
        self.record = record
        over = {entry["trial"] for entry in record.entries() if "status" in entry}
        begun = {entry["trial"] for entry in record.entries() if "params" in entry}
        self.members = {number: params for number, params in enumerate(members) if number not in over}
        for number, params in self.members.items():
            folder = trial_folder(record.folder, number)
            if number in begun:
                self.members[number] = latest(folder) or params
                record.goes_on(number, self.members[number])
            else:
                record.begun(number, params)

    def space(self) -> Document:
        """As Tune's own generator goes through it."""
        members = self.members
        params = tune.sample_from(lambda config: dict(members[config["trial"]]))
        return {"trial": tune.grid_search(list(members)), "params": params, "population": True}

    def ended(self, number: int, error: bool) -> None:
        """A member is over."""
        self.record.ended(number, **ending(self.record.reports(number), error))


def carry_out(
    task: Task, who: Recorded | Population, scheduler: TrialScheduler | None, watch: Callable[[int, bool], None], *,
    workers: int, cpus: float, gpus: float, reduction: int = 2, seconds: float | None = None,
    target: float | None = None,
) -> None:  # fmt: skip
    """Carry out the trials that are left, on the Ray that this process is connected to.

    Args:
        task: what they have in common.
        who: says which; or a population, whose members are known.
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
    config: Document = {"task": asdict(task), "reduction": reduction}
    if isinstance(who, Population):
        config |= who.space()
        count, searcher, watcher = 1, None, Watch(watch, who.ended)
    else:
        count, searcher, watcher = who.left, who, Watch(watch)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(Carrier, {"CPU": cpus, **({"GPU": gpus} if gpus else {})}),
        param_space=config,
        tune_config=tune.TuneConfig(
            num_samples=count, search_alg=searcher, scheduler=scheduler or FIFOScheduler(), reuse_actors=True,
            max_concurrent_trials=workers, time_budget_s=seconds, trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=str(storage), verbose=0, stop=stop, callbacks=[watcher],
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
