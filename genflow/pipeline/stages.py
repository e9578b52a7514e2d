"""The registry of pipeline stages, which the programs in `jobs/` declare.

`jobs/<stage>.py` assigns `STAGE = Stage(...)` at its top level, and the folder is the registry: the pipeline's graph,
its dry run, the runner and the summary call `declared()` and do not contain the name of any stage. The declaration is
read from the file's syntax tree, because this package never imports `jobs`; so it consists of literals.

The module implements the protocol `Program`: `main` and `find`. A program without a `STAGE` (tune, serve, ...) has its
own command and cannot be a stage of a pipeline. docs/adding-a-stage.md has an example.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from genflow.system import declarations
from genflow.system.documents import Json
from genflow.system.source_hash import resources_dir

FOLDERS = [resources_dir() / "jobs"]


@dataclass(frozen=True)
class Need:
    """A dependency: a key of a stage in a pipeline file that names another stage or an artifact in the store.

    Args:
        key: the key in the pipeline file, such as `data`.
        reads: the key of the other stage's result that contains the artifact's id, such as `dataset`.
        into: the place of the id in the job's document: `recipe.` or `inputs.` and a path.
        count: `one` name, an `optional` name, `several` names in a list, or `by_stage`: a list of stages only, for
            which the job receives a mapping from stage name to id, without the stages that have no id.
    """

    key: str
    reads: str
    into: str
    count: Literal["one", "optional", "several", "by_stage"] = "one"

    @property
    def section(self) -> str:
        """The first part of `into`: `recipe` or `inputs`."""
        return self.into.partition(".")[0]

    @property
    def path(self) -> str:
        """The rest of `into`."""
        return self.into.partition(".")[2]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The declaration of a program in `jobs/` as a stage of a pipeline.

    Args:
        makes: the key of the result that contains the artifact's id, or a path such as `rows.0.evaluation`.
        folder: the folder of the store for these artifacts; empty: only the result contains the artifact's place.
        sections: the sections of the recipe that it reads and that a pipeline file may set.
        values: further keys of the pipeline file, copied into the job's document unchanged.
        needs: the keys that name other stages.
        preset: whether the key `preset` names a file in `pipelines/` that the recipe starts from.
        cores: CPU cores that it reserves while it runs. 0 for a program that waits for its own Ray tasks: if it
            reserved a core, its tasks could lack one.
        device: whether it trains or draws in its own process, which therefore needs the GPU that its recipe requests.
        goes_first: whether all other stages wait until every stage with this flag is finished.
        takes_failures: whether it runs even if a stage that it needs failed; its document then has `inputs.failed`.
        address: `module:function` in genflow, (store, document) -> the artifact's id before the artifact exists, or ""
            if the id is not known yet. Empty: a dry run shows "to do".
        found: `module:function` in genflow, (store, document) -> the result if the artifact exists, else None, without
            PyTorch. Empty: `pipeline.answers` remembers the results.
        outside: keys of the recipe that may name files outside of the store, which no remembered result knows.
        reviews: a kind of artifacts of which every new one may change the result; empty: none.
        ended: `module:function` in genflow, (store, document) -> {message, hint, code, kind} of an earlier attempt
            whose failure counts as a measurement, or None.
        listed: whether the summary of a pipeline has a line for it.
        order: its place in a list of all stages.
    """

    makes: str
    folder: str = ""
    sections: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    preset: bool = False
    cores: float = 1
    device: bool = False
    goes_first: bool = False
    takes_failures: bool = False
    address: str = ""
    found: str = ""
    outside: tuple[str, ...] = ()
    reviews: str = ""
    ended: str = ""
    listed: bool = True
    order: int = 100

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that the stage may have in a pipeline file."""
        preset = ("preset",) if self.preset else ()
        return ("job", *preset, *(need.key for need in self.needs), *self.values, *self.sections)


class Program(Protocol):
    """The functions of `jobs/<stage>.py` that the runner calls."""

    def main(self, document: Json, emit: Callable[..., None]) -> Mapping[str, Any]:
        """Make the artifact unless it exists, and return the result; `cached` is whether it existed."""
        ...

    def find(self, document: Json) -> Mapping[str, Any] | None:
        """The result if the artifact exists, else None. It must not start Ray."""
        ...


def declared() -> dict[str, Stage]:
    """Every stage by its name, in their declared order."""
    found = {file.stem: stage for folder in FOLDERS for file in folder.glob("*.py") if (stage := _read(file))}
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


@cache
def _read(file: Path) -> Stage | None:
    stage: Stage | None = declarations.constant(file, "STAGE", {"Stage": Stage, "Need": Need})
    return stage


def function(reference: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, name = reference.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def artifact(job: str, result: Json) -> str:
    """The artifact's id in a stage's result, for the summary; empty if the summary does not list the stage."""
    stage = declared().get(job)
    return str(look_up(result, stage.makes) or "") if stage and stage.listed else ""


def look_up(document: Any, path: str) -> Any:
    """The value at a path such as `rows.0.evaluation`; None if it does not exist."""
    for part in path.split("."):
        try:
            document = document[int(part) if isinstance(document, list) else part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return document


def nested(path: str, value: Any) -> Any:
    """A document with only this value at this path."""
    for part in reversed(path.split(".")):
        value = [value] if part == "0" else {part: value}
    return value
