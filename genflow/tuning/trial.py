"""One trial: one set of settings, trained and measured in stages; no stage is done twice.

    trials/0007/  recipe.yaml  facts.json  checkpoints/step_00000300/  reports.jsonl

A stage trains up to a share of the budget, measures, and appends one line to reports.jsonl. A repeated request reads
that line. After a kill, training resumes from the checkpoint to the same bits, except with a budget of minutes, because
the number of steps then varies. Settings that fail are a result, and are reported like one.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

import genflow.runs as runs
from genflow.data.shards import Dataset
from genflow.data.stream import Stream
from genflow.errors import ResourceError, SetupError
from genflow.evaluation import samples
from genflow.evaluation.features.extractor import FeatureReference, load_features
from genflow.evaluation.metric_suite import MetricSuite
from genflow.recipe.schema import Recipe, Train, parse
from genflow.sampling.engine import RECIPE, Engine
from genflow.storage.json_lines import append_durably, read_lines
from genflow.storage.store import Store
from genflow.system import devices
from genflow.system.documents import Json
from genflow.tracking.journal import Journal, journal_path
from genflow.training import loop
from genflow.training.checkpoint import read_state
from genflow.training.checkpoint_folders import Checkpoints
from genflow.training.session import Session
from genflow.tuning import metrics, space
from genflow.tuning.objective import ObjectiveTrial, one_line
from genflow.tuning.reports import Measured, Report

REPORTS, CHECKPOINTS = "reports.jsonl", "checkpoints"
SMOOTH = 20  # the metric `loss` is the mean of the last so many losses


@dataclass(frozen=True)
class Task:
    """What all trials of a search share, as plain values, because a trial may run on another machine.

    Args:
        store: URL or folder of the store.
        folder: of the search's trials.
        recipe: as composed, without a trial's settings, as JSON.
        dataset: id of the dataset.
        metrics: by name.
        shares: shares of the budget at which a trial is measured; the last one is 1.
        samples: number of samples for the last measurement.
        part: which half of the held-out rows to use (see `metrics.held_out`).
        seed: of the samples' noise.
        objective: `module:function` to call instead of training, with the settings and the share.
        journals: prefix of the names of the trials' journals; empty: no journals.
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
    """A training, or an objective in its place, that advances to a share of its budget and measures."""

    def advance(self, share: float) -> Measured:
        """Train up to a share of the budget, and measure."""


class TrialContext:
    """What consecutive trials in one process share: the memory-mapped shards and the reference features.

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
        """The dataset."""
        return Dataset.open(self.store.find("datasets", self.task.dataset))

    @cached_property
    def extractor(self) -> FeatureReference:
        """The feature extractor and the reference features; they were computed before the first trial."""
        return load_features(self.store, self.data, self.recipe.evaluate.features, lambda *_, **__: None)

    @cached_property
    def suite(self) -> MetricSuite:
        """The metric suite over the task's part of the held-out rows."""
        return metrics.metric_suite(self.extractor, self.task.part, self.task.seed)

    def folder(self, number: int) -> Path:
        """A trial's folder."""
        return trial_folder(self.trials, number)

    def stages(self, number: int, params: Json) -> Stages:
        """The training or the objective of a trial."""
        if self.task.objective:
            return ObjectiveTrial(self.task.objective, params, self.task.metrics)
        return Training(self, self.folder(number), space.apply(self.recipe, params), number)


class Trial:
    """One set of settings.

    Args:
        context: of the search.
        number: 0, 1, ...
        params: the settings.
    """

    def __init__(self, context: TrialContext, number: int, params: Json) -> None:
        self.context, self.number, self.params = context, number, params
        self.folder = context.folder(number)
        self._stages: Stages | None = None

    def report(self, rung: int) -> Report:
        """The report of a rung: read it, or train and measure. Settings that fail give a report, too.

        Raises:
            ResourceError: the disk is full; the settings are not the cause.
            SetupError: the store cannot be reached.
        """
        self.context.store.sync(self.folder / REPORTS)
        reports = read_reports(self.folder)
        if rung < len(reports):
            return reports[rung]
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
        context: of the search.
        folder: of the trial.
        recipe: with the trial's settings.
        number: of the trial.
    """

    def __init__(self, context: TrialContext, folder: Path, recipe: Recipe, number: int) -> None:
        self.context, self.folder = context, folder
        self.run = runs.plan(context.store, recipe)
        self.recipe = self.run.recipe
        self.device = devices.choose()
        self.journal = f"{context.task.journals}.{number:04d}" if context.task.journals else ""
        folder.mkdir(parents=True, exist_ok=True)
        context.store.upload(*runs.write_description(folder, self.run))

    def advance(self, share: float) -> Measured:
        """Train up to a share of the budget, and measure."""
        saved = Checkpoints(self.folder / CHECKPOINTS, keep=1)
        losses = [] if position(saved.newest(), self.recipe.train) >= share else self._train(saved, share)
        weights = saved.newest()
        assert weights is not None
        state = read_state(weights)
        engine = Engine.from_folder(self.folder, weights, device=self.device)
        engine = samples.with_captions(engine, self.context.store)
        if share < 1:  # the loop calls `finish` only at the end of training
            engine.family.finish(self._stream())
        task = self.context.task
        count = metrics.samples_at(share, task.samples)
        context = self.context
        values = metrics.measure(context.store, engine, context.data, context.suite, task.metrics, count, task.seed)
        if "loss" in task.metrics:
            values["loss"] = sum(losses) / len(losses) if losses else float("nan")
        return {
            "step": state["step"], "images": state["images"], "seconds": state["seconds"],
            "cpu_seconds": state["cpu_seconds"], "parameters": state["parameters"],
            "samples": min(count, len(self.context.extractor.floor)), "values": values,
        }  # fmt: skip

    def _stream(self) -> Stream:
        learned = runs.training_data(self.context.store, self.recipe) if self.recipe.data.latents else self.context.data
        rows = runs.training_rows(self.context.store, self.recipe, learned)
        train = self.recipe.train
        texts = runs.texts_of(self.context.store, self.recipe)
        return Stream(rows, train.batch, train.seed, device=self.device, flip=self.recipe.data.flip, texts=texts)

    def _train(self, saved: Checkpoints, share: float) -> list[float]:
        """Train until a share of the budget is used; return the last losses."""
        train = self.recipe.train
        losses: list[float] = []
        used = 0.0
        journal = Journal(journal_path(self.context.store.root, self.journal)) if self.journal else None

        def log(numbers: Json) -> None:
            nonlocal used
            used = numbers["position"]
            losses[:] = [*losses[1 - SMOOTH :], next(x for name, x in numbers.items() if name.startswith("loss"))]
            if journal and numbers["step"] % train.log_every == 0:
                values = {f"train/{name}": x for name, x in numbers.items() if name not in ("step", "position")}
                journal.metrics(numbers["step"], values)

        def save(step: int, write: Callable[[Path], None]) -> None:
            if journal:
                journal.sync_with_bucket()
            saved.save(step, write)

        session = Session(
            device=self.device, threads=train.threads or 1, load=saved.newest, save=save, log=log,
            should_stop=lambda: share < 1 and used >= share,
        )  # fmt: skip
        stream = self._stream()
        family = runs.initial_family(self.context.store, self.recipe, self.run.facts)
        every_step = train.model_copy(update={"log_every": 1})  # so that `used` is up to date; it changes no result
        try:
            loop.fit(family, stream, session, every_step, full_batches=stream)
        finally:
            if journal:
                journal.close()
        return losses


def position(weights: Path | None, train: Train) -> float:
    """The share of the budget that a checkpoint has used; 0 without a checkpoint."""
    if weights is None:
        return 0.0
    state = read_state(weights)
    used = [state["step"] / train.steps]
    for limit, seconds in ((train.minutes, state["seconds"]), (train.cpu_minutes, state["cpu_seconds"])):
        used += [seconds / (60 * limit)] if limit is not None else []
    return max(used)


def trial_folder(trials: Path, number: int) -> Path:
    """A trial's folder."""
    return trials / f"{number:04d}"


def read_reports(folder: Path) -> list[Report]:
    """A trial's reports, rung by rung; an incomplete last line is skipped."""
    return cast(list[Report], read_lines(folder / REPORTS))
