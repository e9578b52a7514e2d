"""Train one run with Ray Train: N workers around `genflow.training.fit`, and what surrounds them.

One worker on one device needs no cluster: Ray Train's local mode enters the loop at once, in this process.
Checkpoints are genflow's own in every mode, in the store; Ray restarts workers, and each of them goes on from
the newest checkpoint that verifies.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from genflow import env
from genflow.errors import GenflowError, ResourceError, UsageError
from genflow.recipe import Recipe, parse
from genflow.runs import RunPlan, begin, plan
from genflow.store import Artifact, Store
from jobs.common import Document, Emit, execute

GRID_COLUMNS, GRID_ROWS = 10, 6


def main(document: Document, emit: Emit) -> Document:
    """Train the run of `recipe`, or find it finished, or go on with it."""
    recipe = parse(document["recipe"])
    store = Store()
    from genflow import build
    from genflow.facts import Facts

    dataset = store.find("datasets", recipe.data.name)
    facts = Facts.from_json(dataset.file("facts.json").read_text())
    run = plan(build.resolve(recipe, facts), dataset)
    if document.get("inputs", {}).get("fresh"):
        _forget(store, run)
    if finished := store.get("runs", run.id):
        return result(finished, cached=True)
    with store.lock("runs", run.id, wait=False):
        begin(store, run)
        with tracked(store, run, emit):
            fitted = _fit(store, run, emit)
        artifact = store.seal(
            "runs", run.id, name=run.name, parents=[dataset.id], meta=fitted, only=lambda name: ".tmp-" not in name
        )
    return result(artifact, cached=False)


def result(run: Artifact, *, cached: bool) -> Document:
    """The document that the command prints."""
    keys = ("family", "net", "dataset", "steps", "images", "seconds", "cpu_seconds", "parameters", "world")
    return {
        "schema": "genflow.train/1",
        "run": run.id,
        "name": run.name,
        "path": str(run.path),
        "cached": cached,
        **{key: run.meta.get(key) for key in keys},
    }


def _forget(store: Store, run: RunPlan) -> None:
    import shutil

    from genflow.journal import journal_path

    with store.lock("runs", run.id, wait=False):
        shutil.rmtree(store.folder("runs", run.id), ignore_errors=True)
        for file in journal_path(store.root, run.id).parent.glob(f"{run.id}.*"):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def tracked(store: Store, run: RunPlan, emit: Emit) -> Iterator[None]:
    """Keep the run's journal, and send it to MLflow while the run goes on."""
    from genflow import __version__, tracking
    from genflow.journal import Journal, journal_path
    from genflow.recipe import flatten

    path = journal_path(store.root, run.id)
    tracking.prepare(store)
    sender = tracking.Sender(store, run.id)
    with Journal(path, experiment=run.dataset.name, name=run.name) as journal:
        journal.tags(
            {
                "family": run.recipe.family["kind"],
                "net": run.recipe.net["kind"],
                "dataset": run.dataset.id,
                "data_fingerprint": run.facts.fingerprint[:16],
                "genflow": __version__,
            }
        )
        journal.params(flatten(run.recipe.model_dump(mode="json")))
        journal.artifact(store.folder("runs", run.id) / "recipe.yaml")
        journal.status("RUNNING")  # a run that goes on is no longer what its last attempt ended as
        sender.start()
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
            from genflow.training import newest

            folder = store.folder("runs", run.id)
            if weights := newest(folder):
                journal.model(weights, run.name)
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            journal.status(status)  # type: ignore[arg-type]
            journal.close()
            if not sender.finish(deadline_s=30):
                emit("warning", message=f"MLflow lacks some of {run.id}: {sender.sent.problem}",
                     hint="genflow ui sends the rest when it is back")


def _fit(store: Store, run: RunPlan, emit: Emit) -> dict[str, Any]:
    """Run the workers; return what the run's manifest says of it."""
    cluster = run.recipe.cluster
    settings = {
        "store": str(store.root),
        "recipe": run.recipe.model_dump(mode="json"),
        "dataset": run.dataset.id,
        "run": run.id,
        "world": cluster.workers,
    }
    here = cluster.workers == 1 and not os.environ.get("GENFLOW_CLUSTER")
    if here:
        _local(settings)
    else:
        from jobs.cluster import ray_cluster

        with ray_cluster(num_cpus=max(env.cores(), math.ceil(cluster.workers * cluster.cpus))):
            require(cluster.workers, cluster.cpus, cluster.gpus)
            _distributed(settings, run)
    state = _state(store.folder("runs", run.id))
    return {
        "family": run.recipe.family["kind"],
        "net": run.recipe.net["kind"],
        "dataset": run.dataset.id,
        "dataset_name": run.dataset.name,
        "fingerprint": run.facts.fingerprint,
        "steps": state["step"],
        "images": state["images"],
        "seconds": round(state["seconds"], 2),
        "cpu_seconds": round(state["cpu_seconds"], 2),
        "parameters": state["parameters"],
        "world": cluster.workers,
        "machine": _machine(),
    }


def _state(folder: Path) -> dict[str, Any]:
    import json

    from genflow.training import newest

    weights = newest(folder)
    if weights is None:
        raise GenflowError(f"the run {folder.name} ended without a checkpoint", "run the same command again")
    return json.loads((weights / "state.json").read_text())


def _machine() -> str:
    import platform

    return f"{platform.system()} {platform.machine()}, {env.cores()} cores"


def require(workers: int, cpus: float, gpus: float) -> None:
    """Refuse at once what the cluster can never satisfy.

    Raises:
        ResourceError: it has fewer CPUs or GPUs than the workers ask for.
    """
    import ray

    have = ray.cluster_resources()
    for resource, need in (("CPU", workers * cpus), ("GPU", workers * gpus)):
        if need > have.get(resource, 0):
            raise ResourceError(
                f"{workers} workers need {need:g} {resource}, the cluster has {have.get(resource, 0):g}",
                "use fewer --workers, or add nodes",
            )


def _local(settings: dict[str, Any]) -> None:
    """One worker in this process: Ray Train without a cluster."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(worker, train_loop_config=settings, scaling_config=ScalingConfig(num_workers=0))
    with quiet_logs():
        trainer.fit()


def _distributed(settings: dict[str, Any], run: RunPlan) -> None:
    """Workers on a cluster. Ray restarts them; the store remembers where they were."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    cluster = run.recipe.cluster
    trainer = TorchTrainer(
        worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=cluster.gpus > 0,
            resources_per_worker={"CPU": cluster.cpus, **({"GPU": cluster.gpus} if cluster.gpus else {})},
            placement_strategy="SPREAD" if os.environ.get("GENFLOW_CLUSTER") else "PACK",
        ),
        run_config=RunConfig(
            name=f"{run.id}-{time.time_ns():x}",  # the store resumes, not Ray: a fresh name every time
            storage_path=str(Path(settings["store"]) / "ray"),
            failure_config=FailureConfig(max_failures=cluster.retries, controller_failure_limit=5),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise cause_of(error) from error


def cause_of(error: BaseException) -> BaseException:
    """The GenflowError inside what Ray raises, if a worker raised one; else the error itself."""
    seen: list[BaseException] = [error]
    while seen:
        current = seen.pop()
        if isinstance(current, GenflowError):
            return current
        failures = getattr(current, "worker_failures", None) or {}
        seen += [e for e in (*failures.values(), current.__cause__, getattr(current, "cause", None)) if e is not None]
        if isinstance(inner := getattr(current, "_base_exc", None), BaseException):
            seen.append(inner)
    return error


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Ray's informational lines are for its developers."""
    import logging

    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def worker(settings: dict[str, Any]) -> None:
    """What every worker does: build the family, open the data, and fit."""
    import ray.train
    import ray.train.torch
    import torch

    from genflow import build, events, training
    from genflow.data.shards import Dataset
    from genflow.data.stream import Stream
    from genflow.journal import Journal, journal_path
    from genflow.maths.seeds import key

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    store, recipe = Store(settings["store"]), parse(settings["recipe"])
    dataset = store.get("datasets", settings["dataset"])
    if dataset is None:
        raise UsageError(
            f"worker {rank} cannot see the dataset {settings['dataset']} in {store.root}",
            "set GENFLOW_STORE to a folder that every node can see",
        )
    data = Dataset.open(dataset)
    torch.manual_seed(key(recipe.train.seed, "weights"))
    family = build.family_of(recipe, data.facts)
    device = str(ray.train.torch.get_device()) if recipe.cluster.gpus or torch.cuda.is_available() else "cpu"
    folder = store.folder("runs", settings["run"])
    stop = _Stop(world)
    journal = Journal(journal_path(store.root, settings["run"])) if rank == 0 else None
    session = _session(
        folder, recipe, rank, world, device, stop, lambda numbers: _say(numbers, journal, events.emit, recipe, settings)
    )
    batches = Stream(data.splits["train"], recipe.train.batch, recipe.train.seed, rank, world, device)

    def show(step: int, average: dict[str, Any]) -> None:
        file = folder / "samples" / f"step_{step:08d}.png"
        training.on_average(family, average, lambda: _grid(family, recipe, file, device))
        if journal:
            journal.image(step, "samples/ema", file)

    try:
        fitted = training.fit(family, batches, session, recipe.train, show)
    finally:
        if journal:
            journal.close()
    if stop.signum:
        emit_stop = f"saved at step {fitted.step}"
        events.emit("note", message=emit_stop)
        raise KeyboardInterrupt("SIGTERM" if stop.signum == signal.SIGTERM else "SIGINT")


def _session(
    folder: Path, recipe: Recipe, rank: int, world: int, device: str, stop: "_Stop",
    log: Callable[[dict[str, Any]], None],
) -> Any:
    """The session of a Ray Train worker whose checkpoints lie in the store."""
    import ray.train

    from genflow.checkpoint import Checkpoints
    from genflow.session import Session

    checkpoints = Checkpoints(folder / "checkpoints")
    threads = recipe.train.threads or 1
    return Session(
        rank=rank, world=world, device=device, threads=threads,
        load=checkpoints.newest, save=checkpoints.save, log=log, should_stop=stop,
        barrier=ray.train.report if world > 1 else (lambda state: None),
    )  # fmt: skip


def _say(numbers: dict[str, Any], journal: Any, emit: Callable[..., None], recipe: Recipe, settings: Any) -> None:
    """A step's numbers: into the journal, and to whoever waits."""
    step = numbers["step"]
    position = numbers.pop("position")
    metrics = {f"train/{key}": value for key, value in numbers.items() if key != "step"}
    journal.metrics(step, metrics)
    total = recipe.train.steps
    left = numbers["seconds"] * (1 - position) / position if position > 0 else None
    emit(
        "progress", stage="train", run=settings["run"], family=recipe.family["kind"], step=step, steps=total,
        position=position, loss=next(v for k, v in numbers.items() if k.startswith("loss")),
        images_per_second=numbers["images_per_second"], eta=left,
    )  # fmt: skip


def _grid(family: Any, recipe: Recipe, file: Path, device: str) -> None:
    """Samples of fixed seeds, one class a column where there are classes."""
    from genflow.data.preview import render
    from genflow.engine import Engine
    from genflow.store import write_atomically

    engine = Engine.of_training(family, recipe, device)
    classes = family.facts.classes
    count = GRID_COLUMNS * GRID_ROWS
    labels = [i % GRID_COLUMNS % classes for i in range(count)] if classes else None
    images = engine.draw(range(count), labels).images
    write_atomically(file, render(images, family.facts, GRID_COLUMNS))


class _Stop:
    """Whether a signal asked this process to end. One worker saves first; the second signal ends it at once."""

    def __init__(self, world: int) -> None:
        self.signum = 0
        if world == 1 and threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self._ask)

    def _ask(self, signum: int, frame: object) -> None:
        if self.signum:
            raise KeyboardInterrupt("SIGTERM" if signum == signal.SIGTERM else "SIGINT")
        self.signum = signum

    def __call__(self) -> bool:
        return bool(self.signum)


if __name__ == "__main__":
    execute(main)
