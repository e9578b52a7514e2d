"""One trial: settings, trained and measured in stages, none of which is done twice.

    trials/0007/  recipe.yaml  facts.json  checkpoints/step_00000300/  reports.jsonl

A stage trains up to a share of the budget, measures, and writes one line. Asked for again, the line is read; killed
between, training goes on from its checkpoint to the same bits (a budget of minutes apart, which is no number of steps).
What goes wrong with the settings is a result, and is written down like one.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from genflow import runs
from genflow.data.shards import Dataset
from genflow.data.stream import Stream
from genflow.errors import ResourceError, SetupError
from genflow.evaluation.features.extractor import FeatureReference, load_features
from genflow.evaluation.metric_suite import MetricSuite
from genflow.recipe.files import dump
from genflow.recipe.schema import Recipe, Train, parse
from genflow.sampling.engine import RECIPE, Engine
from genflow.storage.files import write_atomically
from genflow.storage.json_lines import append_durably, read_lines
from genflow.storage.store import Store
from genflow.tracking.journal import Journal, journal_path
from genflow.training import loop
from genflow.training.checkpoint import Checkpoints, read_state
from genflow.training.session import Session
from genflow.tuning import metrics, space
from genflow.tuning.objective import ObjectiveTrial, one_line
from genflow.tuning.reports import Measured, Report

REPORTS, CHECKPOINTS = "reports.jsonl", "checkpoints"
SMOOTH = 20  # losses that the metric `loss` is the mean of
Document = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What every trial of a search has in common, as plain values, because a trial may run on another machine.

    Args:
        store: its URL or folder.
        folder: of the search's trials.
        recipe: as composed, without the trials' settings, as JSON.
        dataset: its id.
        metrics: by name.
        shares: of the budget at which a trial is measured, the last one 1.
        samples: drawn for the last measurement.
        part: of the held-out rows (see `metrics.held_out`).
        seed: of the samples' noise.
        objective: `module:function` to ask instead of training, called with the settings and the share.
        journals: begin of the names of the trials' journals; empty: none is kept.
    """

    store: str
    folder: str
    recipe: str
    dataset: str
    metrics: tuple[str, ...]
    shares: tuple[float, ...]
    samples: int
    part: int = 0
    seed: int = 0
    objective: str = ""
    journals: str = ""


class Stages(Protocol):
    """Something that can be brought to a share of its budget and measured there."""

    def advance(self, share: float) -> Measured:
        """Train up to a share of the budget, and measure."""


class TrialContext:
    """What trials share that follow each other in one process: the mapped shards, and the judge's features.

    Args:
        task: of the search.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.store = Store(task.store)
        self.trials = self.store.folder("searches", Path(task.folder).parent.name) / Path(task.folder).name
        self.recipe = parse(json.loads(task.recipe))
        if not self.store.available(self.trials / RECIPE):
            raise SetupError(
                f"the node {os.uname().nodename} does not see the store {task.store}",
                "set GENFLOW_STORE to a folder that every node can see, or to s3://BUCKET/PREFIX",
            )

    @cached_property
    def data(self) -> Dataset:
        """The shards."""
        return Dataset.open(self.store.find("datasets", self.task.dataset))

    @cached_property
    def judge(self) -> FeatureReference:
        """The features; they were made before the first trial began."""
        return load_features(self.store, self.data, self.recipe.evaluate.features, lambda *_, **__: None)

    @cached_property
    def ruler(self) -> MetricSuite:
        """Over the part of the held-out rows that is this search's."""
        return metrics.metric_suite(self.judge, self.task.part, self.task.seed)

    def folder(self, number: int) -> Path:
        """Where a trial lies."""
        return trial_folder(self.trials, number)

    def stages(self, number: int, params: Document) -> Stages:
        """A trial's work."""
        if self.task.objective:
            return ObjectiveTrial(self.task.objective, params, self.task.metrics)
        return Training(self, self.folder(number), space.apply(self.recipe, params), number)


class Trial:
    """One choice of settings.

    Args:
        context: of its search.
        number: 0, 1, ...
        params: the settings.
    """

    def __init__(self, context: TrialContext, number: int, params: Document) -> None:
        self.context, self.number, self.params = context, number, params
        self.folder = context.folder(number)
        self._stages: Stages | None = None

    def report(self, rung: int) -> Report:
        """The report of a rung, found or made; what goes wrong with the settings is one, too.

        Raises:
            ResourceError: the disk is full, which is no fault of the settings.
            SetupError: the store is out of reach.
        """
        self.context.store.sync(self.folder / REPORTS)
        there = read_reports(self.folder)
        if rung < len(there):
            return there[rung]
        share = self.context.task.shares[rung]
        self.folder.mkdir(parents=True, exist_ok=True)
        made: Report = {"share": share}
        try:
            if self._stages is None:
                self._stages = self.context.stages(self.number, self.params)
            measured = self._stages.advance(share)
            made |= measured
            if bad := [name for name, value in measured["values"].items() if not math.isfinite(value)]:
                made |= {"status": "diverged", "why": f"{bad[0]} is not finite"}
        except (loop.NonFinite, loop.TrainingDiverged) as error:
            made |= {"status": "diverged", "why": error.message}
        except (ResourceError, SetupError):
            raise
        except Exception as error:
            made |= {"status": "failed", "why": one_line(error)}
        append_durably(self.folder / REPORTS, {**made, "params": self.params})
        self.context.store.sync(self.folder / REPORTS)
        return made


class Training:
    """A run of the training loop, in stages.

    Args:
        context: of its search.
        folder: of the trial.
        recipe: with the trial's settings.
        number: the trial's.
    """

    def __init__(self, context: TrialContext, folder: Path, recipe: Recipe, number: int) -> None:
        self.context, self.folder = context, folder
        self.run = runs.plan(context.store, recipe)
        self.recipe = self.run.recipe
        self.device = "cuda" if recipe.cluster.gpus and torch.cuda.is_available() else "cpu"
        self.journal = f"{context.task.journals}.{number:04d}" if context.task.journals else ""
        write_atomically(folder / RECIPE, dump(self.recipe))
        write_atomically(folder / "facts.json", self.run.dataset.file("facts.json").read_bytes())
        context.store.upload(folder / RECIPE, folder / "facts.json")

    def advance(self, share: float) -> Measured:
        """Train up to a share of the budget, and measure."""
        saved = Checkpoints(self.folder / CHECKPOINTS, keep=1)
        losses = [] if position(saved.newest(), self.recipe.train) >= share else self._train(saved, share)
        weights = saved.newest()
        assert weights is not None
        state = read_state(weights)
        engine = Engine.from_folder(self.folder, weights, device=self.device)
        if share < 1:  # what follows from the weights is fitted at the end of training alone
            engine.family.finish(self._stream())
        task = self.context.task
        count = metrics.samples_at(share, task.samples)
        values = metrics.measure(engine, self.context.data, self.context.ruler, task.metrics, count, task.seed)
        if "loss" in task.metrics:
            values["loss"] = sum(losses) / len(losses) if losses else float("nan")
        return {
            "step": state["step"], "images": state["images"], "seconds": state["seconds"],
            "cpu_seconds": state["cpu_seconds"], "parameters": state["parameters"],
            "samples": min(count, len(self.context.judge.floor)), "values": values,
        }  # fmt: skip

    def _stream(self) -> Stream:
        rows = runs.rows(self.context.store, self.recipe, self.context.data)
        return Stream(rows, self.recipe.train.batch, self.recipe.train.seed, device=self.device)

    def _train(self, saved: Checkpoints, share: float) -> list[float]:
        """Train until a share of the budget is used; return the last losses."""
        train = self.recipe.train
        losses: list[float] = []
        used = 0.0
        journal = Journal(journal_path(self.context.store.root, self.journal)) if self.journal else None

        def log(numbers: Document) -> None:
            nonlocal used
            used = numbers["position"]
            losses[:] = [*losses[1 - SMOOTH :], next(x for name, x in numbers.items() if name.startswith("loss"))]
            if journal and numbers["step"] % train.log_every == 0:
                values = {f"train/{name}": x for name, x in numbers.items() if name not in ("step", "position")}
                journal.metrics(numbers["step"], values)

        def save(step: int, write: Callable[[Path], None]) -> None:
            if journal:
                journal.keep()
            saved.save(step, write)

        session = Session(
            device=self.device, threads=train.threads or 1, load=saved.newest, save=save, log=log,
            should_stop=lambda: share < 1 and used >= share,
        )  # fmt: skip
        stream = self._stream()
        family = runs.fresh(self.context.store, self.recipe, self.context.data.facts)
        every_step = train.model_copy(update={"log_every": 1})  # so that `used` is known; it changes no result
        try:
            loop.fit(family, stream, session, every_step, full_batches=stream)
        finally:
            if journal:
                journal.close()
        return losses


def position(weights: Path | None, train: Train) -> float:
    """The share of the budget that a checkpoint has used."""
    if weights is None:
        return 0.0
    state = read_state(weights)
    used = [state["step"] / train.steps]
    for limit, seconds in ((train.minutes, state["seconds"]), (train.cpu_minutes, state["cpu_seconds"])):
        used += [seconds / (60 * limit)] if limit is not None else []
    return max(used)


def trial_folder(trials: Path, number: int) -> Path:
    """Where a trial lies."""
    return trials / f"{number:04d}"


def read_reports(folder: Path) -> list[Report]:
    """A trial's reports, rung by rung; a torn last line is none."""
    return cast(list[Report], read_lines(folder / REPORTS))
