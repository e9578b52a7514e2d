"""A pipeline as a value: stages, the dependencies between them, and an order that respects these.

    name: quickstart
    stages:
      digits:  {job: prepare, data: {source: digits}}
      vae:     {job: train, preset: vae, data: digits, train: {steps: 600}}
      few:     {job: train, preset: consistency, data: digits, init: flow}
      report:  {job: compare, runs: [vae, ...], evaluate: {samples: 1000}}

The program of a stage declares its keys, and which of them name other stages (`pipeline/stages.py`). A train stage
names its dataset, and optionally an initial run and a teacher's pairs; a reflow stage names its teacher; an evaluate or
compare stage names its runs. Each name is another stage or an artifact in the store; the names of stages are the edges
of the graph. A tables stage takes every evaluation of a study, and runs even if some of them failed.
`jobs/pipeline.py` runs the graph. Every job finds its artifact by its content address, so running a pipeline again
makes only the missing artifacts.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genflow.errors import UsageError, nearest
from genflow.pipeline.stages import Need, Stage, declared, look_up
from genflow.recipe.compose import compose
from genflow.recipe.schema import NAME, Recipe
from genflow.system.documents import Json


@dataclass(frozen=True)
class Node:
    """One stage of a pipeline file.

    Args:
        name: unique in its pipeline.
        job: the program that runs the stage.
        stage: the declaration of that program.
        needs: the stages whose artifacts it reads.
        recipe: the job's recipe, before the ids of its inputs are known.
        references: by key, the stages or artifacts whose ids become `inputs` of the job's document.
        values: further keys, copied into the job's document.
    """

    name: str
    job: str
    stage: Stage
    needs: tuple[str, ...]
    recipe: Recipe
    references: dict[str, tuple[str, ...]] = field(default_factory=dict)
    values: Json = field(default_factory=dict)

    @property
    def takes_failures(self) -> bool:
        """Whether the stage runs even if a stage that it needs failed; such a failure counts as a measurement."""
        return self.stage.takes_failures

    def document(self, made: dict[str, Json], failed: dict[str, Json] | None = None) -> Json:
        """The job's document, once the stages that it needs are finished.

        Args:
            made: results by stage name.
            failed: failures by stage name: {stage, kind, message}.

        Raises:
            UsageError: a needed stage makes another kind of artifact.
        """
        recipe, inputs = self.recipe.model_dump(mode="json"), {}
        for need in self.stage.needs:
            if need.section == "inputs":
                inputs[need.path] = self._input(need, made)
            elif (name := look_up(recipe, need.path)) in made:
                *sections, key = need.path.split(".")
                section = recipe[sections[0]] if sections else recipe
                section[key] = self._id(need, name, made)
        if self.takes_failures:
            inputs["failed"] = {name: found for name, found in (failed or {}).items() if name in self.needs}
        own = {"recipe": recipe} if self.stage.sections else {}
        return {**own, **self.values, "inputs": inputs}

    def _input(self, need: Need, made: dict[str, Json]) -> Any:
        names = self.references[need.key]
        if need.count == "by_stage":
            found = {name: look_up(made[name], need.reads) for name in names if name in made}
            return {name: id for name, id in found.items() if id}
        ids = [self._id(need, name, made) for name in names]
        return ids if need.count == "several" else ids[0] if ids else ""

    def _id(self, need: Need, name: str, made: dict[str, Json]) -> str:
        if name not in made:
            return name
        if id := look_up(made[name], need.reads):
            return str(id)
        raise UsageError(f"stage {self.name}: {need.key} names {name}, whose result has no {need.reads}")


@dataclass(frozen=True)
class Pipeline:
    """Stages in an order in which each comes after the stages that it needs."""

    name: str
    stages: tuple[Node, ...]


def load(document: Json, where: str, overrides: Json | None = None) -> Pipeline:
    """Parse the document of a pipeline file.

    Args:
        document: has `name` and `stages`.
        where: the file's name, for error messages.
        overrides: sections that override those of every stage that has them (`--set train.steps=10`).

    Raises:
        UsageError: a key, job or stage is unknown, or stages depend on each other in a cycle.
    """
    for key in document:
        if key not in ("name", "stages"):
            raise UsageError(f"{where}: unknown key {key}{nearest(key, ['name', 'stages'])}")
    name = str(document.get("name") or Path(where).stem)
    if not NAME.fullmatch(name):
        raise UsageError(f"{where}: name {name!r} is invalid", "use letters, digits, '.', '_' and '-'")
    described = document.get("stages")
    if not isinstance(described, dict) or not described:
        raise UsageError(f"{where}: a pipeline needs `stages`, a mapping of names to stages")
    kinds = declared()
    nodes = [_node(str(key), value, list(described), kinds, where, overrides or {}) for key, value in described.items()]
    return Pipeline(name, tuple(_in_order(nodes, where)))


def _node(name: str, value: Any, names: list[str], kinds: dict[str, Stage], where: str, overrides: Json) -> Node:
    at = f"{where}: stage {name}"
    job = value.get("job") if isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(job, str) or job not in kinds:
        raise UsageError(f"{at}: job must be one of {', '.join(kinds)}, not {job!r}")
    stage = kinds[job]
    for key in value:
        if key not in stage.keys:
            raise UsageError(f"{at}: unknown key {key}{nearest(key, list(stage.keys))}")
    named = {need: _names(need, value, names, at) for need in stage.needs}
    recipe = _recipe(stage, value, overrides, at)
    needs: list[str] = []
    for need in stage.needs:
        others = named[need] if need.section == "inputs" else (look_up(recipe.model_dump(), need.path),)
        needs += [other for other in others if other in names]
    references = {need.key: found for need, found in named.items() if need.section == "inputs"}
    values = {key: value[key] for key in stage.values if key in value}
    return Node(name, job, stage, tuple(needs), recipe, references, values)


def _names(need: Need, value: Json, names: list[str], at: str) -> tuple[str, ...]:
    """The stages or artifacts that a key names.

    Raises:
        UsageError: the value is missing or has the wrong type.
    """
    given = value.get(need.key)
    if need.count == "one":
        if not isinstance(given, str):
            raise UsageError(f"{at}: {need.key} must name a stage or a {need.reads}, not {given!r}")
        return (given,)
    if need.count == "optional":
        return (given,) if isinstance(given, str) and given else ()
    listed = isinstance(given, list) and all(isinstance(name, str) for name in given)
    if need.count == "by_stage":
        if given is not None and not listed:
            raise UsageError(f"{at}: {need.key} must be a list of stages, not {given!r}")
        return tuple(name for name in given or () if name in names)
    if not listed or not given:
        raise UsageError(f"{at}: {need.key} must be a list of stages or {need.reads}s, not {value.get(need.key, ())!r}")
    return tuple(given)


def _recipe(stage: Stage, value: Json, overrides: Json, at: str) -> Recipe:
    """Merge, in increasing priority: defaults, preset, the stage, --set of sections that the stage has, references."""
    if not stage.sections:
        return Recipe()
    own = {key: value[key] for key in stage.sections if key in value}
    fixed: Json = {}
    for need in stage.needs:
        section, _, key = need.path.partition(".")
        if need.section == "recipe" and key:
            fixed.setdefault(section, {})[key] = value.get(need.key, "")
        elif need.section == "recipe" and need.key in value:
            own[section] = value[need.key]
    overrides = {key: section for key, section in overrides.items() if key in stage.keys}
    return compose(value.get("preset") if stage.preset else None, [own], overrides, fixed, where=at)


def _in_order(nodes: list[Node], where: str) -> list[Node]:
    """Sort the stages topologically; otherwise keep the order of the file."""
    ordered: list[Node] = []
    left = list(nodes)
    while left:
        done = {node.name for node in ordered}
        ready = [node for node in left if done.issuperset(node.needs)]
        if not ready:
            cycle = ", ".join(node.name for node in left)
            raise UsageError(f"{where}: these stages depend on each other in a cycle: {cycle}")
        ordered.append(ready[0])
        left.remove(ready[0])
    return ordered
