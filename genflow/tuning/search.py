"""A search as a value: what it is called, where it lies, and the record from which a killed one goes on.

    searches/<name>-<key>/  kin  trials/ {recipe.yaml, record.jsonl, 0007/}  confirm/ {the same}
                            best.yaml  search.json  trials.csv  grid.png  manifest.json

The record says, in the order in which it happened, which settings a trial got and how it ended. Told to the searcher
again in that order, it brings it to the state in which it was: the next settings are those that would have come.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

from genflow import code, runs, shared
from genflow.engine import RECIPE
from genflow.errors import UsageError
from genflow.evaluation import features, measure
from genflow.json_lines import append_for_good, read_lines
from genflow.recipe import Recipe, digest, dump
from genflow.runs import RunPlan
from genflow.store import Store, clear_disk_errors, write_atomically
from genflow.tuning import heredity, metrics, space
from genflow.tuning.rehearsal import contents, objective
from genflow.tuning.reports import Report, Row
from genflow.tuning.space import Space
from genflow.tuning.trial import REPORTS, Task, read_reports, trial_folder

Document = dict[str, Any]
RECORD, KIN = "record.jsonl", "kin"
TRIALS, CONFIRM = "trials", "confirm"
ENDS = {"trials", "minutes", "target", "confirm"}  # of `tune`: when a search is over, and what comes after it
WARM = 4  # times of the learning rate's rise, before which a trial is not compared to others
WORST = 1e12  # what a searcher is told of a trial that has no value: worse than any


@dataclass(frozen=True)
class Search:
    """A search that may not have begun.

    Args:
        id: `<name>-<key>`.
        name: as people say it.
        recipe: as composed, with the section `tune`.
        run: of the preset, resolved: what the search wants to better.
        space: by key.
        metrics: by name; the first decides.
        objective: `module:function` that is asked instead of training; empty: none.
        kin: the address without what says when it is over: of searches that share it, trials are the same.
    """

    id: str
    name: str
    recipe: Recipe
    run: RunPlan
    space: Space
    metrics: tuple[str, ...]
    objective: str = ""
    kin: str = ""

    @cached_property
    def own(self) -> Document:
        """The preset's own values of the space's keys."""
        return space.own(self.run.recipe, self.space, self.run.facts)

    @property
    def short(self) -> Recipe:
        """The recipe with the budget of a trial."""
        return of_a_trial(self.recipe)

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of a trial's budget at which it is measured."""
        tune = self.recipe.tune
        if tune.scheduler == "pbt":
            return tuple((k + 1) / tune.rungs for k in range(tune.rungs))
        shares = [1 / tune.reduction**k for k in reversed(range(tune.rungs if tune.scheduler == "asha" else 1))]
        train = self.run.recipe.train
        # while the rate rises, whoever has the largest is ahead
        least = 0.0 if self.objective or not train.steps else WARM * train.warmup / train.steps
        return tuple(share for share in shares if share >= min(least, 1.0))

    @property
    def trials(self) -> int:
        """How many trials there will be at the most: of a grid, no more than it has points."""
        if self.recipe.tune.searcher != "grid":
            return self.recipe.tune.trials
        return min(self.recipe.tune.trials, math.prod(len(domain.values) for domain in self.space.values()))

    def folder(self, store: Store) -> Path:
        """Where it lies."""
        return store.folder("searches", self.id)

    def task(self, store: Store, *, confirm: bool = False) -> Task:
        """What its trials have in common; those of the confirmation have their own rows, noise and folder."""
        return Task(
            store=store.url, folder=str(self.folder(store) / (CONFIRM if confirm else TRIALS)),
            recipe=self.short.model_dump_json(), dataset=self.run.dataset.id, metrics=self.metrics,
            shares=(1.0,) if confirm else self.shares, samples=self.recipe.tune.samples, part=int(confirm),
            seed=self.recipe.evaluate.seed + int(confirm), objective=self.objective,
            journals="" if confirm or self.objective else self.id,
        )  # fmt: skip


def plan(store: Store, recipe: Recipe, objective_name: str = "") -> Search:
    """Check a search whole, and name it.

    Args:
        store: where the data is, and the run to start from.
        recipe: as composed.
        objective_name: `module:function` to ask instead of training.

    Raises:
        UsageError: the recipe, the space or the metric cannot be, in one line.
    """
    tune = recipe.tune
    run = runs.plan(store, of_a_trial(recipe))
    found = space.space_of(recipe, run.recipe, run.facts)
    if tune.searcher == "grid" and (open_ := [key for key, domain in found.items() if not domain.values]):
        text = str(found[open_[0]])
        raise UsageError(f"a grid needs a number of values of {open_[0]}, and {text} has no end of them",
                         f"-p {open_[0]}={text.replace('int:', 'uniform:')}:5, or choice:A,B")  # fmt: skip
    if tune.scheduler == "pbt":
        heredity.check(tune, found, run.recipe, run.facts)
    if objective_name:
        objective(objective_name)
    wanted = tune.metric if objective_name else metrics.known(tune.metric)
    name = recipe.name or f"{run.recipe.family['kind']}-{run.dataset.name}"
    kin, id = (f"{name}-{_address(run, found, recipe, objective_name, without)}" for without in (ENDS, set()))
    return Search(id, name, recipe, run, found, wanted, objective_name, kin)


def of_a_trial(recipe: Recipe) -> Recipe:
    """A recipe with the budget that `tune.steps` gives a trial."""
    if recipe.tune.steps is None:
        return recipe
    budget = {"steps": recipe.tune.steps, "minutes": None, "cpu_minutes": None}
    return recipe.replace(train={**recipe.train.model_dump(mode="json"), **budget})


def _address(run: RunPlan, found: Space, recipe: Recipe, objective_name: str, without: set[str]) -> str:
    """The content address, from what decides what is found; how many trials run at once is no part of it."""
    judged = features.address(run.dataset, run.facts, recipe.evaluate.features)
    deciding = [
        runs.address(run.recipe, run.facts), {key: str(domain) for key, domain in found.items()},
        recipe.tune.model_dump(mode="json", exclude={"space"} | without), recipe.evaluate.seed, judged, objective_name,
        contents(objective_name), code.fingerprint(*measure.ROOMS, "genflow/tuning"),
    ]  # fmt: skip
    return digest(deciding)


def begin(store: Store, search: Search) -> None:
    """Make its folder, with what the trials of any node look for."""
    for task in (search.task(store), search.task(store, confirm=True)):
        with clear_disk_errors(Path(task.folder)):
            store.share(write_atomically(Path(task.folder) / RECIPE, dump(search.short)))
    with clear_disk_errors(search.folder(store)):
        write_atomically(search.folder(store) / KIN, search.kin)


class Listener(Protocol):
    """Who wants to hear of trials."""

    def begun(self, number: int, params: Document) -> None:
        """A trial begins, or goes on."""

    def ended(self, number: int, status: str, why: str = "") -> None:
        """A trial is over."""


class Record:
    """The record of a search's trials; only ever appended to, by the driver alone.

    Args:
        folder: of the trials; the record lies in it.
        listener: is told, too.
    """

    def __init__(self, folder: Path, listener: "Listener | None" = None) -> None:
        self.folder, self.path, self.listener = folder, folder / RECORD, listener

    def begun(self, number: int, params: Document) -> None:
        """A trial got its settings."""
        self._append({"trial": number, "params": params})
        self.goes_on(number, params)

    def goes_on(self, number: int, params: Document) -> None:
        """A trial that got its settings before is carried on with; that is no news to the record."""
        if self.listener:
            self.listener.begun(number, params)

    def ended(self, number: int, status: str, why: str = "") -> None:
        """A trial is over: finished, stopped, diverged or failed."""
        self._append({"trial": number, "status": status, **({"why": why} if why else {})})
        if self.listener:
            self.listener.ended(number, status, why)

    def spent(self, seconds: float) -> None:
        """How long the trials have taken, over all attempts."""
        self._append({"seconds": round(seconds, 1)})

    def entries(self) -> list[Document]:
        """What happened, in order; a torn line is passed over."""
        _level(self.path)
        return read_lines(self.path)

    def note(self, entry: Document) -> None:
        """Something else that happened (see `population`)."""
        self._append(entry)

    def seconds(self) -> float:
        """How long the trials took in earlier attempts."""
        return max((entry["seconds"] for entry in self.entries() if "seconds" in entry), default=0.0)

    def rows(self) -> list[Row]:
        """Every trial, by number."""
        rows: dict[int, Document] = {}
        for entry in self.entries():
            if "trial" in entry:
                rows.setdefault(entry["trial"], {"status": "running"}).update(entry)
        return [cast(Row, row | last(self.reports(number))) for number, row in sorted(rows.items())]

    def reports(self, number: int) -> list[Report]:
        """A trial's reports, rung by rung."""
        folder = trial_folder(self.folder, number)
        _level(folder / REPORTS)
        return read_reports(folder)

    def _append(self, entry: Document) -> None:
        with clear_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_for_good(self.path, entry)
        _level(self.path)


def _level(path: Path) -> None:
    """Have the same here and in the bucket, if the store is one."""
    if mirror := shared.of(path):
        mirror.level(path)


def last(reports: list[Report]) -> Document:
    """What is known of a trial from its reports: of the last one that has values, and the seconds of all."""
    with_values = [report for report in reports if "values" in report]
    found: Document = {**with_values[-1]} if with_values else {"values": {}, "share": 0.0}
    for gone in ("status", "why"):
        found.pop(gone, None)
    return found


def told(metric: str, report: Report) -> float:
    """A report's value as a searcher is told it: finite, whatever happened."""
    value = report.get("values", {}).get(metric)
    if value is None or report.get("status") or abs(value) > WORST or value != value:
        return WORST if metrics.mode(metric) == "min" else -WORST
    return float(value)
