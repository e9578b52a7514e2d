"""Run a pipeline: its missing stages as Ray tasks, in parallel if cores are free.

If a stage fails, the stages that do not need it continue, and finished artifacts stay. A second run makes only the
missing artifacts, because each job finds its artifact by its content address.
"""

import contextlib
import importlib
import os
from collections.abc import Collection, Iterable
from typing import Any, cast

from genflow.errors import BY_CODE, GenflowError, SetupError, UsageError
from genflow.pipeline.graph import Node, Pipeline, load
from genflow.pipeline.results import PipelineDone
from genflow.pipeline.stages import Program, Stage, function
from genflow.recipe.schema import parse
from genflow.storage.store import Store
from genflow.system import events
from genflow.system.documents import Json
from jobs.runtime.entrypoint import Emit, execute, run_and_report


def main(document: Json, emit: Emit) -> PipelineDone:
    """Run the pipeline in `document["pipeline"]`."""
    described = document["pipeline"]
    pipeline = load(described, str(described.get("name", "pipeline")), document.get("overrides"))
    made: dict[str, Json] = {}
    failed: dict[str, Json] = {}  # by stage: the stage that failed first, and its error
    emit("stages", total=len(pipeline.stages))
    _find_existing(pipeline, made, failed, emit)
    cached = len(made) == len(pipeline.stages)
    if len(made) + len(failed) < len(pipeline.stages):
        _check_options(pipeline, made.keys() | failed.keys())
        from jobs.runtime.cluster import ray_cluster

        with ray_cluster():
            _run(pipeline, made, failed, emit)
    _raise_failures(pipeline, made, failed)
    stages = [
        {"stage": node.name, "job": node.job, **made[node.name]} for node in pipeline.stages if node.name in made
    ]
    return {"schema": "genflow.run/1", "pipeline": pipeline.name, "cached": cached, "stages": stages}


def _check_options(pipeline: Pipeline, ended: Collection[str]) -> None:
    """Check the options of every family and the text encoders, so that a wrong one in the last stage costs no time.

    Raises:
        UsageError: an option is unknown or out of range, or there is no such text encoder.
        SetupError: the package of a text encoder is not installed.
    """
    from genflow import build, text_encoders  # imports torch

    for node in pipeline.stages:
        try:
            if node.name not in ended and "kind" in node.recipe.family:
                build.check_options(node.recipe)
            if node.name not in ended and node.job == "encode_text":
                text_encoders.find(node.recipe.encode.text)
        except (UsageError, SetupError) as error:
            raise type(error)(f"stage {node.name}: {error.message}", error.hint) from error


def _find_existing(pipeline: Pipeline, made: dict[str, Json], failed: dict[str, Json], emit: Emit) -> None:
    """Find existing artifacts, without Ray. If failures count as measurements, do not train a diverged run again."""
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
                elif node.name in measured and (failure := _earlier_failure(node, document)):
                    failed[node.name] = {"stage": node.name, **failure}
                    emit("stage", name=node.name, job=node.job, status="failed", **failure)


def _program(job: str) -> Program:
    """Import the program of a stage."""
    return cast(Program, importlib.import_module(f"jobs.{job}"))


def _earlier_failure(node: Node, document: Json) -> Json | None:
    """The error of an earlier attempt, if the stage declares that it counts as a measurement."""
    ended: Json | None = function(node.stage.ended)(Store(), document) if node.stage.ended else None
    return ended


def _must_wait(node: Node, waiting: Iterable[Node], running: Iterable[Node]) -> bool:
    """Whether a stage waits until every `goes_first` stage is finished."""
    return not node.stage.goes_first and any(other.stage.goes_first for other in (*waiting, *running))


def _is_blocked(node: Node, failed: dict[str, Json]) -> bool:
    """Whether a stage cannot run because a stage that it needs failed."""
    return bool(failed.keys() & set(node.needs)) and not node.takes_failures


def _skip(node: Node, failed: dict[str, Json], emit: Emit) -> None:
    failed[node.name] = failed[next(need for need in node.needs if need in failed)]
    emit("stage", name=node.name, job=node.job, status="skipped")


def _run(pipeline: Pipeline, made: dict[str, Json], failed: dict[str, Json], emit: Emit) -> None:
    """Run every missing stage as soon as the stages that it needs are finished."""
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
                task = ray.remote(num_cpus=cpus, num_gpus=_gpus(node), max_retries=0)(_stage_task)
                running[task.remote(node.job, node.document(made, failed), _environment(node))] = node
        if not running:
            continue
        (ready, *_), _ = ray.wait(list(running))
        node = running.pop(ready)
        try:
            outcome = ray.get(ready)
        except Exception as error:
            message = f"the Ray task of stage {node.name} failed: {type(error).__name__}"
            outcome = {"error": {"message": message, "hint": "", "code": 1, "kind": type(error).__name__}}
        if "document" in outcome:
            made[node.name] = outcome["document"]
            emit("stage", name=node.name, job=node.job, status="done", document=outcome["document"])
        else:
            failure = outcome["error"]
            failed[node.name] = {"stage": node.name, **failure}
            emit("stage", name=node.name, job=node.job, status="failed", **failure)


def _gpus(node: Node) -> float:
    """The GPUs of a stage's own process. On a cluster a training and an evaluation start tasks with GPUs themselves."""
    cluster = node.recipe.cluster
    if not node.stage.device or cluster.workers > 1 or os.environ.get("GENFLOW_CLUSTER"):
        return 0
    from jobs.runtime.gpus import requested

    return requested(cluster, cpus=node.stage.cores)


def _raise_failures(pipeline: Pipeline, made: dict[str, Json], failed: dict[str, Json]) -> None:
    """Raise the first failure that no stage counted as a measurement."""
    taken = {need for node in pipeline.stages if node.takes_failures and node.name in made for need in node.needs}
    for name, failure in failed.items():
        if name not in taken:
            kind = BY_CODE.get(failure["code"], GenflowError)
            hint = failure["hint"] or "fix the cause and run the same command again"
            raise kind(f"stage {name}: {failure['message']}", hint)


def _environment(node: Node) -> dict[str, str]:
    """Environment variables for a stage's worker, whose Ray may have started with others."""
    return {"GENFLOW_STORE": Store().url, events.STAGE: node.name} | {
        name: os.environ[name] for name in ("MLFLOW_TRACKING_URI", "GENFLOW_VERBOSE") if name in os.environ
    }


def _stage_task(job: str, document: Json, environment: dict[str, str]) -> Json:
    """Run a stage in a Ray worker: progress goes to standard output, and the result or error is returned."""
    os.environ.update(environment)
    events.emit("waiting", stage=job, what="starting")  # until now the task has waited for a free core
    if getattr(_program(job), "STAGE", Stage(makes="")).device:
        from jobs.runtime.gpus import claim

        claim(parse(document["recipe"]).cluster.device)
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
