"""A search as a value: its id, its folder, and the trial log from which a killed search resumes.

    searches/<name>-<key>/  kin  trials/ {recipe.yaml, record.jsonl, 0007/}  confirm/ {the same}
                            best.yaml  search.json  trials.csv  grid.png  manifest.json

The trial log (record.jsonl) lists in chronological order the settings that each trial got and how it ended. Replayed
in that order it restores the searcher's state: a resumed search continues with the settings that would have come.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import genflow.runs as runs
from genflow.errors import UsageError
from genflow.evaluation import metrics as measured_by
from genflow.evaluation.features import extractor
from genflow.recipe.files import dump
from genflow.recipe.schema import Recipe
from genflow.runs import RunPlan
from genflow.sampling.engine import RECIPE
from genflow.storage.files import explain_disk_errors, write_atomically
from genflow.storage.store import Store
from genflow.system import source_hash
from genflow.system.documents import Json
from genflow.system.source_hash import digest
from genflow.tuning import metrics, pbt_check, space
from genflow.tuning.objective import load_objective, source_text
from genflow.tuning.space import Space
from genflow.tuning.trial import Task

RESUME_KEY = "kin"
TRIALS, CONFIRM = "trials", "confirm"
STOPPING_KEYS = {"trials", "minutes", "target", "confirm"}  # of `tune`: when a search ends
WARMUPS_BEFORE_RUNG = 4  # no rung is earlier than so many learning-rate warm-ups


@dataclass(frozen=True)
class Search:
    """A search that may not have started.

    Args:
        id: `<name>-<key>`.
        name: for users.
        recipe: as composed, with the section `tune`.
        run: the run of the resolved preset, which the search tries to improve.
        space: the search space, by key of the recipe.
        metrics: by name; the first decides.
        objective: `module:function` to call instead of training; empty: none.
        resume_key: the content address without `STOPPING_KEYS`; searches that share it have the same trials.
    """

    id: str
    name: str
    recipe: Recipe
    run: RunPlan
    space: Space
    metrics: tuple[str, ...]
    objective: str = ""
    resume_key: str = ""

    @cached_property
    def preset_values(self) -> Json:
        """The preset's values of the space's keys."""
        return space.preset_values(self.run.recipe, self.space, self.run.facts)

    @property
    def trial_recipe(self) -> Recipe:
        """The recipe with the budget of a trial."""
        return with_trial_budget(self.recipe)

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of a trial's budget at which it is measured."""
        tune = self.recipe.tune
        if tune.scheduler == "pbt":
            return tuple((k + 1) / tune.rungs for k in range(tune.rungs))
        shares = [1 / tune.reduction**k for k in reversed(range(tune.rungs if tune.scheduler == "asha" else 1))]
        train = self.run.recipe.train
        # during warm-up the trial with the largest learning rate is ahead
        least = 0.0 if self.objective or not train.steps else WARMUPS_BEFORE_RUNG * train.warmup / train.steps
        return tuple(share for share in shares if share >= min(least, 1.0))

    @property
    def trials(self) -> int:
        """The maximum number of trials; a grid has no more than its points."""
        if self.recipe.tune.searcher != "grid":
            return self.recipe.tune.trials
        return min(self.recipe.tune.trials, math.prod(len(domain.values) for domain in self.space.values()))

    def folder(self, store: Store) -> Path:
        """The search's folder in the store."""
        return store.folder("searches", self.id)

    def task(self, store: Store, *, confirm: bool = False) -> Task:
        """The task that its trials share; the confirmation has its own rows, noise and folder."""
        return Task(
            store=store.url, folder=str(self.folder(store) / (CONFIRM if confirm else TRIALS)),
            recipe=self.trial_recipe.model_dump_json(), dataset=self.run.dataset.id, metrics=self.metrics,
            shares=(1.0,) if confirm else self.shares, samples=self.recipe.tune.samples, part=int(confirm),
            seed=self.recipe.evaluate.seed + int(confirm), objective=self.objective,
            journals="" if confirm or self.objective else self.id,
        )  # fmt: skip


def plan(store: Store, recipe: Recipe, objective_name: str = "") -> Search:
    """Check a search completely, and derive its id.

    Args:
        store: holds the data and the run to start from.
        recipe: as composed.
        objective_name: `module:function` to call instead of training.

    Raises:
        UsageError: the recipe, the space or a metric is invalid.
    """
    tune = recipe.tune
    run = runs.plan(store, with_trial_budget(recipe))
    found = space.space_of(recipe, run.recipe, run.facts)
    if tune.searcher == "grid" and (open_ := [key for key, domain in found.items() if not domain.values]):
        text = str(found[open_[0]])
        raise UsageError(f"a grid needs a finite number of values of {open_[0]}, and {text} is a range",
                         f"-p {open_[0]}={text.replace('int:', 'uniform:')}:5, or choice:A,B")  # fmt: skip
    if tune.scheduler == "pbt":
        pbt_check.check(tune, found, run.recipe, run.facts)
    if objective_name:
        load_objective(objective_name)
    wanted = tune.metric if objective_name else metrics.check(tune.metric)
    name = recipe.name or f"{run.recipe.family['kind']}-{run.dataset.name}"
    keys = (_address(run, found, recipe, objective_name, without) for without in (STOPPING_KEYS, set()))
    resume_key, id = (f"{name}-{key}" for key in keys)
    return Search(id, name, recipe, run, found, wanted, objective_name, resume_key)


def with_trial_budget(recipe: Recipe) -> Recipe:
    """A recipe with the budget of a trial, if `tune.steps` is set."""
    if recipe.tune.steps is None:
        return recipe
    budget = {"steps": recipe.tune.steps, "minutes": None, "cpu_minutes": None}
    return recipe.replace(train={**recipe.train.model_dump(mode="json"), **budget})


def _address(run: RunPlan, found: Space, recipe: Recipe, objective_name: str, without: set[str]) -> str:
    """The content address, from everything that decides the result; the number of concurrent trials does not."""
    judged = extractor.address(run.dataset, run.data_facts, recipe.evaluate.features)
    deciding = [
        runs.address(run.recipe, run.facts), {key: str(domain) for key, domain in found.items()},
        recipe.tune.model_dump(mode="json", exclude={"space"} | without), recipe.evaluate.seed, judged, objective_name,
        source_text(objective_name), source_hash.code_of("jobs/tune.py", *measured_by.files()),
    ]  # fmt: skip
    return digest(deciding)


def begin(store: Store, search: Search) -> None:
    """Create the search's folder, with the files that trials on any node read."""
    for task in (search.task(store), search.task(store, confirm=True)):
        with explain_disk_errors(Path(task.folder)):
            store.upload(write_atomically(Path(task.folder) / RECIPE, dump(search.trial_recipe)))
    with explain_disk_errors(search.folder(store)):
        write_atomically(search.folder(store) / RESUME_KEY, search.resume_key)


