"""Carry out a pipeline: every stage that is missing, side by side where the machine has room, as Ray tasks.

A stage that fails leaves the others' artifacts; what does not need it goes on. Run again, only what is missing
is made: each job finds its artifact by its content address.
"""

import contextlib
import importlib
import os
from collections.abc import Iterable
from typing import Any

from genflow.errors import BY_CODE, GenflowError
from genflow.pipeline.graph import Pipeline, Stage, load
from genflow.storage.store import Store
from jobs.runtime.entrypoint import Document, Emit, attempt, execute

# Jobs that bring Ray tasks of their own must not hold a core while they wait for them.
CORES = {"prepare": 0, "train": 1, "reflow": 0, "evaluate": 1, "compare": 1, "tables": 1}


def main(document: Document, emit: Emit) -> Document:
    """Run the pipeline in `document["pipeline"]`."""
    described = document["pipeline"]
    pipeline = load(described, str(described.get("name", "pipeline")), document.get("overrides"))
    made: dict[str, Document] = {}
    failed: dict[str, Document] = {}  # by stage: which stage failed first, and how
    _look(pipeline, made, failed, emit)
    cached = len(made) == len(pipeline.stages)
    if len(made) + len(failed) < len(pipeline.stages):
        from jobs.runtime.cluster import ray_cluster

        with ray_cluster():
            _run(pipeline, made, failed, emit)
    _complain(pipeline, made, failed)
    stages = [
        {"stage": stage.name, "job": stage.job, **made[stage.name]} for stage in pipeline.stages if stage.name in made
    ]
    return {"schema": "genflow.run/1", "pipeline": pipeline.name, "cached": cached, "stages": stages}


def _look(pipeline: Pipeline, made: dict[str, Document], failed: dict[str, Document], emit: Emit) -> None:
    """What is there already needs no Ray; and where failures are measurements, a run that diverged stays so."""
    measured = {need for stage in pipeline.stages if stage.takes_failures for need in stage.needs}
    for stage in pipeline.stages:
        if _waits_in_vain(stage, failed):
            _skip(stage, failed, emit)
        elif set(stage.needs) <= (made.keys() | failed.keys()):
            job = importlib.import_module(f"jobs.{stage.job}")
            with contextlib.suppress(GenflowError):
                if found := job.find(stage.document(made, failed)):
                    made[stage.name] = found
                    emit("stage", name=stage.name, job=stage.job, status="cached", document=found)
                elif stage.job == "train" and stage.name in measured and (told := job.ended(stage.document(made))):
                    failed[stage.name] = {"stage": stage.name, **told}
                    emit("stage", name=stage.name, job=stage.job, status="failed", **told)


def _is_held_back(stage: Stage, waiting: Iterable[Stage], running: Iterable[Stage]) -> bool:
    """Whether a stage waits until every dataset is prepared.

    A prepare stage decodes in Ray Data's tasks. Behind a queue of trainings that hold every core these would wait, and
    after half an hour without progress Ray Data gives up: that was seen.
    """
    return stage.job != "prepare" and any(other.job == "prepare" for other in (*waiting, *running))


def _waits_in_vain(stage: Stage, failed: dict[str, Document]) -> bool:
    return bool(failed.keys() & set(stage.needs)) and not stage.takes_failures


def _skip(stage: Stage, failed: dict[str, Document], emit: Emit) -> None:
    failed[stage.name] = failed[next(need for need in stage.needs if need in failed)]
    emit("stage", name=stage.name, job=stage.job, status="skipped")


def _run(pipeline: Pipeline, made: dict[str, Document], failed: dict[str, Document], emit: Emit) -> None:
    """Run every stage that is not made, as soon as what it needs is."""
    import ray

    waiting = [stage for stage in pipeline.stages if stage.name not in made and stage.name not in failed]
    running: dict[Any, Stage] = {}
    while waiting or running:
        for stage in list(waiting):
            ended = made.keys() | failed.keys() if stage.takes_failures else made.keys()
            if _waits_in_vain(stage, failed):
                waiting.remove(stage)
                _skip(stage, failed, emit)
            elif set(stage.needs) <= ended and not _is_held_back(stage, waiting, running.values()):
                waiting.remove(stage)
                emit("stage", name=stage.name, job=stage.job, status="running")
                cpus = 0 if stage.recipe.cluster.workers > 1 else CORES[stage.job]
                task = ray.remote(num_cpus=cpus, max_retries=0)(_stage_task)
                running[task.remote(stage.job, stage.document(made, failed), _environment())] = stage
        if not running:
            continue
        (ready, *_), _ = ray.wait(list(running))
        stage = running.pop(ready)
        try:
            outcome = ray.get(ready)
        except Exception as error:
            died = f"stage {stage.name} died: {type(error).__name__}"
            outcome = {"error": {"message": died, "hint": "", "code": 1, "kind": type(error).__name__}}
        if "document" in outcome:
            made[stage.name] = outcome["document"]
            emit("stage", name=stage.name, job=stage.job, status="done", document=outcome["document"])
        else:
            told = outcome["error"]
            failed[stage.name] = {"stage": stage.name, **told}
            emit("stage", name=stage.name, job=stage.job, status="failed", **told)


def _complain(pipeline: Pipeline, made: dict[str, Document], failed: dict[str, Document]) -> None:
    """Raise what failed, unless a stage took it as a measurement."""
    taken = {need for stage in pipeline.stages if stage.takes_failures and stage.name in made for need in stage.needs}
    for name, told in failed.items():
        if name not in taken:
            kind = BY_CODE.get(told["code"], GenflowError)
            raise kind(f"stage {name}: {told['message']}", told["hint"] or "mend it and run the same command again")


def _environment() -> dict[str, str]:
    """What a stage must share with this process, whenever its Ray was started."""
    return {"GENFLOW_STORE": Store().url} | {
        name: os.environ[name] for name in ("MLFLOW_TRACKING_URI", "GENFLOW_VERBOSE") if name in os.environ
    }


def _stage_task(job: str, document: Document, environment: dict[str, str]) -> Document:
    """A stage in a Ray worker: its progress goes to standard output, its end comes back as a value."""
    from genflow.system import events

    os.environ.update(environment)
    outcome: Document = {}

    def emit(event: str, **fields: Any) -> None:
        if event in ("result", "error"):
            outcome["document" if event == "result" else "error"] = fields.get("document", fields)
        else:
            events.emit(event, **fields)

    attempt(importlib.import_module(f"jobs.{job}").main, document, emit)
    return outcome


if __name__ == "__main__":
    execute(main)
