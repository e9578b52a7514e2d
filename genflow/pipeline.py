"""A pipeline as a value: stages, what each of them needs, and the order that follows.

    name: quickstart
    stages:
      digits:  {job: prepare, data: {source: digits}}
      vae:     {job: train, preset: vae, data: digits, train: {steps: 600}}
      few:     {job: train, preset: consistency, data: digits, init: flow}
      report:  {job: compare, runs: [vae, ...], evaluate: {samples: 1000}}

A train stage names its dataset (and the run that it starts from, and a teacher's pairs), a reflow stage its teacher,
an evaluate or compare stage its runs, by the stage that makes them or by an artifact that exists. Those names are
the edges. A tables stage takes every evaluation of a study, and is carried out even where some of them failed.
`jobs/pipeline.py` carries the graph out; every job knows its artifact by its content address, so running a pipeline
again does only what is missing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genflow.errors import UsageError
from genflow.recipe import NAME, Recipe, compose, merge, nearest, parse

Document = dict[str, Any]
JOBS = ("prepare", "train", "reflow", "evaluate", "compare", "tables")
KEYS = {
    "prepare": ("job", "data"),
    "train": ("job", "preset", "data", "pairs", "init", "name", "net", "family", "train", "sample", "cluster"),
    "reflow": ("job", "run", "reflow", "sample", "cluster"),
    "evaluate": ("job", "runs", "evaluate", "sample"),
    "compare": ("job", "runs", "evaluate", "sample"),
    "tables": ("job", "needs", "study"),
}


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        name: unique in its pipeline.
        job: which program carries it out.
        needs: the stages whose artifacts it takes.
        recipe: what the job is told, before its inputs are known.
        runs: the runs that a reflow, evaluate or compare stage takes, by stage name or reference.
        study: what a tables stage is of.
    """

    name: str
    job: str
    needs: tuple[str, ...]
    recipe: Recipe
    runs: tuple[str, ...] = ()
    study: Document | None = None

    @property
    def takes_failures(self) -> bool:
        """Whether it is carried out even where something that it needs failed: a failure is a measurement."""
        return self.study is not None

    def document(self, made: dict[str, Document], failed: dict[str, Document] | None = None) -> Document:
        """The job's document, once what it needs is made.

        Args:
            made: results by stage name.
            failed: what failed, by stage name: {stage, kind, message}.
        """
        if self.study is not None:
            failed = {name: found for name, found in (failed or {}).items() if name in self.needs}
            rows = {name: made[name].get("rows") for name in self.needs if name in made}
            evaluations = {name: found[0]["evaluation"] for name, found in rows.items() if found}
            return {"study": self.study, "inputs": {"evaluations": evaluations, "failed": failed}}
        recipe = self.recipe
        if self.job == "train" and recipe.data.name in made:
            recipe = recipe.replace(data={**recipe.data.model_dump(), "name": made[recipe.data.name]["dataset"]})
        if recipe.data.pairs in made:
            recipe = recipe.replace(data={**recipe.data.model_dump(), "pairs": made[recipe.data.pairs]["pairs"]})
        if recipe.init in made:
            recipe = recipe.replace(init=made[recipe.init]["run"])
        runs = [made[run]["run"] if run in made else run for run in self.runs]
        inputs = {"run": runs[0]} if self.job == "reflow" else {"runs": runs} if runs else {}
        return {"recipe": recipe.model_dump(mode="json"), "inputs": inputs}


@dataclass(frozen=True)
class Pipeline:
    """Stages in an order in which each comes after what it needs."""

    name: str
    stages: tuple[Stage, ...]


def load(document: Document, where: str, overrides: Document | None = None) -> Pipeline:
    """A pipeline file's document as a pipeline.

    Args:
        document: with `name` and `stages`.
        where: what to call it in an error.
        overrides: sections laid over every stage that has them (`--set train.steps=10`).

    Raises:
        UsageError: an unknown key, job or stage, or a circle, in one line.
    """
    for key in document:
        if key not in ("name", "stages"):
            raise UsageError(f"{where}: unknown key {key}{nearest(key, ['name', 'stages'])}")
    name = str(document.get("name") or Path(where).stem)
    if not NAME.fullmatch(name):
        raise UsageError(f"{where}: name {name!r}: use letters, digits, '.', '_' and '-'")
    described = document.get("stages")
    if not isinstance(described, dict) or not described:
        raise UsageError(f"{where}: a pipeline needs `stages`, a mapping of names to stages")
    stages = [_stage(str(key), value, list(described), where, overrides or {}) for key, value in described.items()]
    return Pipeline(name, tuple(_in_order(stages, where)))


def _stage(name: str, value: Any, names: list[str], where: str, overrides: Document) -> Stage:
    at = f"{where}: stage {name}"
    if not isinstance(value, dict) or value.get("job") not in JOBS:
        job = value.get("job") if isinstance(value, dict) else value
        raise UsageError(f"{at}: job is one of {', '.join(JOBS)}, not {job!r}")
    job = value["job"]
    for key in value:
        if key not in KEYS[job]:
            raise UsageError(f"{at}: unknown key {key}{nearest(key, list(KEYS[job]))}")
    overrides = {key: section for key, section in overrides.items() if key in KEYS[job]}
    runs = value.get("runs", ())
    if job in ("evaluate", "compare"):
        if not isinstance(runs, list) or not runs or not all(isinstance(run, str) for run in runs):
            raise UsageError(f"{at}: runs is a list of stages or runs, not {runs!r}")
        sections = {key: value[key] for key in ("evaluate", "sample") if key in value}
        needs = tuple(run for run in runs if run in names)
        return Stage(name, job, needs, parse(merge(sections, overrides), at), tuple(runs))
    if job == "tables":
        needs = tuple(need for need in value.get("needs", ()) if need in names)
        return Stage(name, job, needs, parse({}, at), study=value.get("study") or {})
    if job == "prepare":
        return Stage(name, job, (), parse(merge({"data": value.get("data", {})}, overrides), at))
    if job == "reflow":
        teacher = value.get("run")
        if not isinstance(teacher, str):
            raise UsageError(f"{at}: run names a stage or a run, not {teacher!r}")
        own = {key: section for key, section in value.items() if key not in ("job", "run")}
        needs = (teacher,) if teacher in names else ()
        return Stage(name, job, needs, parse(merge(own, overrides), at), (teacher,))
    data = value.get("data")
    if not isinstance(data, str):
        raise UsageError(f"{at}: data names a stage or a dataset, not {data!r}")
    own = {key: section for key, section in value.items() if key not in ("job", "preset", "data", "pairs")}
    named = {"name": data, "pairs": str(value.get("pairs", ""))}
    recipe = compose(value.get("preset"), [own], overrides, {"data": named}, where=at)
    needs = tuple(need for need in (data, recipe.init, recipe.data.pairs) if need in names)
    return Stage(name, job, needs, recipe)


def _in_order(stages: list[Stage], where: str) -> list[Stage]:
    """The stages, each after what it needs, otherwise as they stand in the file."""
    ordered: list[Stage] = []
    left = list(stages)
    while left:
        done = {stage.name for stage in ordered}
        ready = [stage for stage in left if done.issuperset(stage.needs)]
        if not ready:
            circle = ", ".join(stage.name for stage in left)
            raise UsageError(f"{where}: stages need each other in a circle: {circle}")
        ordered.append(ready[0])
        left.remove(ready[0])
    return ordered
