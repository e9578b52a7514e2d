"""Carry out a pipeline: every stage that is missing, side by side where the machine has room, as Ray tasks.

A stage that fails leaves the others' artifacts; what does not need it goes on. Run again, only what is missing
is made: each job finds its artifact by its content address.
"""

import contextlib
import importlib
import os
from collections.abc import Iterable
from typing import Any, cast

from genflow.errors import BY_CODE, GenflowError
from genflow.pipeline.graph import Node, Pipeline, load
from genflow.pipeline.results import PipelineDone
from genflow.pipeline.stages import Program, function
from genflow.storage.store import Store
from genflow.system.documents import Json
from jobs.runtime.entrypoint import Emit, execute, run_and_report


def main(document: Json, emit: Emit) -> PipelineDone:
    """Run the pipeline in `document["pipeline"]`."""
    described = document["pipeline"]
    pipeline = load(described, str(described.get("name", "pipeline")), document.get("overrides"))
    made: dict[str, Json] = {}
    failed: dict[str, Json] = {}  # by stage: which stage failed first, and how
    _find_existing(pipeline, made, failed, emit)
    cached = len(made) == len(pipeline.stages)
    if len(made) + len(failed) < len(pipeline.stages):
        from jobs.runtime.cluster import ray_cluster

        with ray_cluster():
            _run(pipeline, made, failed, emit)
    _raise_failures(pipeline, made, failed)
    stages = [
        {"stage": node.name, "job": node.job, **made[node.name]} for node in pipeline.stages if node.name in made
    ]
    return {"schema": "genflow.run/1", "pipeline": pipeline.name, "cached": cached, "stages": stages}


def _find_existing(pipeline: Pipeline, made: dict[str, Json], failed: dict[str, Json], emit: Emit) -> None:
    """What is there already needs no Ray; and where failures are measurements, a run that diverged stays so."""
    measured = {need for node in pipeline.stages if node.takes_failures for need in node.needs}
    for node in pipeline.stages:
        if _is_blocked(node, failed):
            _skip(node, failed, emit)
        elif set(node.needs) <= (made.keys() | failed.keys()):
            with contextlib.suppress(GenflowError):
                document = node.document(made, failed)
                if found := _program(node.job).find(document):
                    made[node.name] = dict(found)
                    emit("stage", name=node.name, job=node.job, status="cached", document=found)
                elif node.name in measured and (told := _earlier_failure(node, document)):
                    failed[node.name] = {"stage": node.name, **told}
                    emit("stage", name=node.name, job=node.job, status="failed", **told)


def _program(job: str) -> Program:
    """The module of a stage, which keeps the protocol."""
    return cast(Program, importlib.import_module(f"jobs.{job}"))


def _earlier_failure(node: Node, document: Json) -> Json | None:
    """How an earlier attempt ended, where the stage declares that such an end is a measurement."""
    ended: Json | None = function(node.stage.ended)(Store(), document) if node.stage.ended else None
    return ended


def _must_wait(node: Node, waiting: Iterable[Node], running: Iterable[Node]) -> bool:
    """Whether a stage waits until every stage that goes first is done."""
    return not node.stage.goes_first and any(other.stage.goes_first for other in (*waiting, *running))


def _is_blocked(node: Node, failed: dict[str, Json]) -> bool:
    return bool(failed.keys() & set(node.needs)) and not node.takes_failures


def _skip(node: Node, failed: dict[str, Json], emit: Emit) -> None:
    failed[node.name] = failed[next(need for need in node.needs if need in failed)]
    emit("stage", name=node.name, job=node.job, status="skipped")


def _run(pipeline: Pipeline, made: dict[str, Json], failed: dict[str, Json], emit: Emit) -> None:
    """Run every stage that is not made, as soon as what it needs is."""
    import ray

    waiting = [node for node in pipeline.stages if node.name not in made and node.name not in failed]
    running: dict[Any, Node] = {}
    while waiting or running:
        for node in list(waiting):
            ended = made.keys() | failed.keys() if node.takes_failures else made.keys()
            if _is_blocked(node, failed):
                waiting.remove(node)
                _skip(node, failed, emit)
            elif set(node.needs) <= ended and not _must_wait(node, waiting, running.values()):
                waiting.remove(node)
                emit("stage", name=node.name, job=node.job, status="running")
                cpus = 0 if node.recipe.cluster.workers > 1 else node.stage.cores
                task = ray.remote(num_cpus=cpus, max_retries=0)(_stage_task)
                running[task.remote(node.job, node.document(made, failed), _environment())] = node
        if not running:
            continue
        (ready, *_), _ = ray.wait(list(running))
        node = running.pop(ready)
        try:
            outcome = ray.get(ready)
        except Exception as error:
            died = f"stage {node.name} died: {type(error).__name__}"
            outcome = {"error": {"message": died, "hint": "", "code": 1, "kind": type(error).__name__}}
        if "document" in outcome:
            made[node.name] = outcome["document"]
            emit("stage", name=node.name, job=node.job, status="done", document=outcome["document"])
        else:
            told = outcome["error"]
            failed[node.name] = {"stage": node.name, **told}
            emit("stage", name=node.name, job=node.job, status="failed", **told)


def _raise_failures(pipeline: Pipeline, made: dict[str, Json], failed: dict[str, Json]) -> None:
    """Raise what failed, unless a stage took it as a measurement."""
    taken = {need for node in pipeline.stages if node.takes_failures and node.name in made for need in node.needs}
    for name, told in failed.items():
        if name not in taken:
            kind = BY_CODE.get(told["code"], GenflowError)
            raise kind(f"stage {name}: {told['message']}", told["hint"] or "mend it and run the same command again")


def _environment() -> dict[str, str]:
    """What a stage must share with this process, whenever its Ray was started."""
    return {"GENFLOW_STORE": Store().url} | {
        name: os.environ[name] for name in ("MLFLOW_TRACKING_URI", "GENFLOW_VERBOSE") if name in os.environ
    }


def _stage_task(job: str, document: Json, environment: dict[str, str]) -> Json:
    """A stage in a Ray worker: its progress goes to standard output, its end comes back as a value."""
    from genflow.system import events

    os.environ.update(environment)
    outcome: Json = {}

    def emit(event: str, **fields: Any) -> None:
        if event in ("result", "error"):
            outcome["document" if event == "result" else "error"] = fields.get("document", fields)
        else:
            events.emit(event, **fields)

    run_and_report(_program(job).main, document, emit)
    return outcome


if __name__ == "__main__":
    execute(main)
