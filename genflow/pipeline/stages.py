"""The stages that a pipeline may have, as the programs in `jobs/` declare them.

`jobs/<stage>.py` assigns `STAGE = Stage(...)` at its top level, and the folder is the registry: the pipeline's graph,
its dry run, the runner and the summary ask `declared()`, and name no stage themselves. The declaration is read from
the file's syntax tree, because this package never imports `jobs`; so it holds literals alone.

The module itself keeps the protocol `Program`: `main` and `find`. A program without a `STAGE` (tune, serve, ...) is
started by its own command and cannot stand in a pipeline. docs/adding-a-stage.md has an example.
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
    """A key of a stage in a pipeline file that names another stage, or an artifact that exists.

    Args:
        key: in the pipeline file, such as `data`.
        reads: the key of the other stage's result that holds the artifact's id, such as `dataset`.
        into: where the job's document takes the id: `recipe.` or `inputs.` and a path.
        count: `one` name, an `optional` one, `several` in a list, or `by_stage`: a list of stages alone, of which the
            job is handed a mapping from the stage's name to the id, without the stages that have none.
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
    """What a program in `jobs/` says of itself as a stage of a pipeline.

    Args:
        makes: the key of its result that holds the artifact's id; a path such as `rows.0.evaluation` where it lies
            deeper.
        folder: where the store keeps such artifacts; empty: it is known from the result alone.
        sections: the keys of the recipe that it reads, and that a pipeline file may set.
        values: further keys of the pipeline file, copied into the job's document as they are.
        needs: the keys that name other stages.
        preset: whether `preset` names a file in `pipelines/` that the recipe starts from.
        cores: CPU cores that it holds while it runs. 0 for a program that waits for Ray tasks of its own: holding a
            core, it could wait for tasks that find none.
        goes_first: whether all other stages wait until every such stage is done.
        takes_failures: whether it runs although something that it needs failed; its document has `inputs.failed`.
        address: `module:function` in genflow, (store, document) -> the artifact's id before it is made, or "" where
            it cannot be known yet. Empty: a dry run says "to do".
        ended: `module:function` in genflow, (store, document) -> {message, hint, code, kind} of an earlier attempt
            whose failure is a measurement, or None.
        listed: whether the summary of a pipeline has a line for it.
        order: where a list of all stages names it.
    """

    makes: str
    folder: str = ""
    sections: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    preset: bool = False
    cores: float = 1
    goes_first: bool = False
    takes_failures: bool = False
    address: str = ""
    ended: str = ""
    listed: bool = True
    order: int = 100

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that such a stage may have in a pipeline file."""
        preset = ("preset",) if self.preset else ()
        return ("job", *preset, *(need.key for need in self.needs), *self.values, *self.sections)


class Program(Protocol):
    """What the runner calls in `jobs/<stage>.py`."""

    def main(self, document: Json, emit: Callable[..., None]) -> Mapping[str, Any]:
        """Make the artifact, or find it made, and return the result, in which `cached` says which it was."""
        ...

    def find(self, document: Json) -> Mapping[str, Any] | None:
        """The result, if the artifact is made already; None if there is something to do. It must not start Ray."""
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
    """The id that the summary shows of a stage's result; empty if it shows none."""
    stage = declared().get(job)
    return str(look_up(result, stage.makes) or "") if stage and stage.listed else ""


def look_up(document: Any, path: str) -> Any:
    """The value at a path such as `rows.0.evaluation`; None if there is none."""
    for part in path.split("."):
        try:
            document = document[int(part) if isinstance(document, list) else part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return document


def nested(path: str, value: Any) -> Any:
    """A document that has the value at the path, and nothing else."""
    for part in reversed(path.split(".")):
        value = [value] if part == "0" else {part: value}
    return value
