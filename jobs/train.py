"""Train one run on the workers that the recipe requests; find it if it is finished, or resume it.

    python -m jobs.train recipe.yaml
"""

import contextlib
import functools
import math
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from genflow import __version__, families
from genflow.errors import GenflowError, UsageError
from genflow.launch import capacity
from genflow.pipeline.results import Trained
from genflow.pipeline.stages import Need, Stage
from genflow.recipe.files import read
from genflow.recipe.schema import Cluster, Recipe, parse
from genflow.recipe.sizes import SMALLEST
from genflow.runs import RunPlan, create_folder, difference, plan, record_divergence, size_of
from genflow.storage.store import Artifact, Store
from genflow.system import devices, environment
from genflow.system.documents import Json
from genflow.system.peak_memory import peak
from genflow.tracking import database, sync
from genflow.tracking.journal import Journal, Status, curves, journal_path
from genflow.tracking.parameters import parameters
from genflow.tracking.sender import Sender
from genflow.training import forecast, verdict
from genflow.training.checkpoint import read_state
from genflow.training.checkpoint_folders import Checkpoints, is_complete, of_run
from genflow.training.loop import NonFinite, TrainingDiverged
from jobs.runtime.cluster import IN_A_JOB, ray_cluster
from jobs.runtime.entrypoint import Emit, execute, warn_if_incomplete

STAGE = Stage(
    makes="run",
    folder="runs",
    preset=True,
    device=True,
    sections=("name", "size", "net", "family", "train", "sample", "cluster"),
    needs=(
        Need("data", "dataset", into="recipe.data.name"),
        Need("init", "run", into="recipe.init", count="optional"),
        Need("pairs", "pairs", into="recipe.data.pairs", count="optional"),
        Need("latents", "latents", into="recipe.data.latents", count="optional"),
        Need("text", "texts", into="recipe.data.text", count="optional"),
    ),
    address="genflow.pipeline.addresses:train",
    ended="genflow.pipeline.addresses:train_ended",
    order=2,
)


def main(document: Json, emit: Emit) -> Trained:
    """Train the run of `recipe`; if it is finished, Ray is not imported.

    Args:
        document: if `inputs.fresh` is set, delete the files of an earlier attempt first; if `inputs.announce` is set,
            say how a new run differs from one of the same name, even if the name is not in the recipe.
        emit: receives events.

    Returns:
        A `genflow.train/1` document.

    Raises:
        UsageError: the recipe does not fit the data, or another process trains this run.
        ResourceError: the cluster is too small for the workers.
        KeyboardInterrupt: the job received a stop signal.
    """
    store = Store()
    run = plan(store, parse(document["recipe"]))
    _check_resources(run.recipe)
    alone = _is_alone(run.recipe.cluster)
    if document.get("inputs", {}).get("fresh"):
        store.delete("runs", run.id)
    if finished := store.get("runs", run.id):
        warn_if_incomplete(emit, run.id, sync.catch_up(store, run.id))
        return result(finished, cached=True)
    device = _device(run) if alone else "cpu"  # of other workers this process cannot see the memory
    # the many runs of a study have no names of their own, and would fill the screen
    if (run.recipe.name or document.get("inputs", {}).get("announce")) and (new := difference(store, run)):
        emit("note", message=new)
    if run.recipe.size != SMALLEST:
        emit("note", message=size_of(run))
    with store.lock("runs", run.id, wait=False, uses=_parents(run)):
        if store.get("datasets", run.dataset.id) is None:
            raise UsageError(f"dataset {run.dataset.id} was deleted just now", "genflow data ls")
        create_folder(store, run)
        try:
            with _journal_sent_to_mlflow(store, run, emit), peak(device) as memory:
                _fit(store, run, emit)
        except (NonFinite, TrainingDiverged) as error:
            record_divergence(store, run, error)
            raise
        meta = {**_describe(store, run), "memory_mb": memory.mb if alone else None}
        artifact = store.finalize(
            "runs", run.id, name=run.name, parents=_parents(run), meta=meta, only=_is_whole(store, run)
        )
    return result(artifact, cached=False)


def find(document: Json) -> Trained | None:
    """The result if the run is finished, else None."""
    store = Store()
    finished = store.get("runs", plan(store, parse(document["recipe"])).id)
    return result(finished, cached=True) if finished else None


def result(run: Artifact, *, cached: bool) -> Trained:
    """The document that the command prints.

    Raises:
        DataError: the run is cached, and its recipe, facts or checkpoint differ from its manifest.
    """
    if cached:
        for name in ("recipe.yaml", "facts.json", *run.files("autoencoder/*"), *run.files("text/*")):
            run.file(name)
        of_run(run)
    meta = run.meta
    return {
        "schema": "genflow.train/1",
        "run": run.id,
        "name": run.name,
        "path": str(run.path),
        "cached": cached,
        "family": meta.get("family"),
        "net": meta.get("net"),
        "dataset": meta.get("dataset"),
        "steps": meta.get("steps"),
        "images": meta.get("images"),
        "seconds": meta.get("seconds"),
        "cpu_seconds": meta.get("cpu_seconds"),
        "parameters": meta.get("parameters"),
        "world": meta.get("world"),
        "texts": meta.get("texts"),
        "passes": meta.get("passes"),
        "trend": meta.get("trend"),
        "stopped_early": meta.get("stopped_early"),
        "longer": _longer(run),
    }


def _longer(run: Artifact) -> str:
    """The command that trains longer; empty for a run that another version of genflow made."""
    meta = run.meta
    with contextlib.suppress(GenflowError):
        starts = families.family_class(meta["family"]).teacher == "optional"
        file = run.file("recipe.yaml")
        recipe = parse(read(file))
        return forecast.continuation(recipe, run.id, file.parent, meta["steps"], starts=starts)
    return ""


def _parents(run: RunPlan) -> list[str]:
    """The ids of the artifacts that a run is made from; the dataset is the first."""
    data = run.recipe.data
    return [id for id in (run.dataset.id, run.recipe.init, data.pairs, data.latents, data.text) if id]


def _is_whole(store: Store, run: RunPlan) -> Callable[[str], bool]:
    """Selects the files of a run: those of no half-written file, and of no half-deleted checkpoint."""
    folder = store.folder("runs", run.id)
    whole = functools.cache(is_complete)

    def selected(name: str) -> bool:
        section, _, rest = name.partition("/")
        return ".tmp-" not in name and (section != "checkpoints" or whole(folder / section / rest.partition("/")[0]))

    return selected


@contextlib.contextmanager
def _journal_sent_to_mlflow(store: Store, run: RunPlan, emit: Emit) -> Iterator[None]:
    """Write the run's journal, and send it to MLflow while the run trains."""
    path, folder = journal_path(store.root, run.id), store.folder("runs", run.id)
    database.prepare(store)
    tags = {"family": run.recipe.family["kind"], "net": run.recipe.net["kind"], "dataset": run.dataset.id}
    tags |= {"data_fingerprint": run.data_facts.fingerprint[:16], "genflow": __version__}
    # Closed before a worker opens it: on NFS, another node would overwrite lines that this node still buffers.
    with Journal(path, experiment=run.dataset.name, name=run.name) as journal:
        journal.tags(tags)
        journal.params(parameters(run.recipe))
        _log_dataset(run, journal)
        journal.artifact(folder / "recipe.yaml")
        journal.status("RUNNING")
    sender = Sender(store, run.id)
    status: Status = "FAILED"
    with Journal(path) as journal:  # kept open, so that the sender knows that the job is alive
        sender.start()
        try:
            yield
            journal.sync_with_bucket()  # fetches the worker's lines, if it was on another machine
            if weights := Checkpoints(folder / "checkpoints").newest():
                _log_end(run, journal, weights, folder)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            journal.status(status)
            journal.close()
            sender.finish(deadline_s=30)
            warn_if_incomplete(emit, run.id, sender.sent)


def _log_dataset(run: RunPlan, journal: Journal) -> None:
    """Log the dataset as MLflow's own: its columns, rows by split, and fingerprint."""
    facts = run.data_facts
    columns = [{"type": "binary", "name": "image", "required": True}]
    columns += [{"type": "long", "name": "label", "required": True}] if facts.classes else []
    columns += [{"type": "string", "name": "caption", "required": False}] if facts.captions else []
    profile = {**facts.splits, "shape": list(facts.shape), "classes": facts.classes}
    digest, schema = facts.fingerprint[:16], {"mlflow_colspec": columns}
    journal.dataset(run.dataset.path, run.dataset.name, digest, schema=schema, profile=profile)


def _log_end(run: RunPlan, journal: Journal, weights: Path, folder: Path) -> None:
    """Log the model, what the training took, and a description with the newest samples.

    The time and the size are at step 0, so that MLflow shows them as bars of runs.
    """
    state, step = read_state(weights), int(weights.name.removeprefix("step_"))
    minutes, size = state["seconds"] / 60, state["parameters"]
    journal.model(weights, run.name, step=step)
    journal.metrics(0, {"minutes": round(minutes, 2), "parameters": size}, stream="training")
    told = f"{step:,} steps in {minutes:.1f} min · {size:,} parameters"
    newest = max(folder.glob("samples/*.png"), default=None)
    journal.description(told, newest, f"Not measured yet: `genflow evaluate {run.id}`")


def _check_resources(recipe: Recipe) -> None:
    """Check the GPUs of the workers.

    Raises:
        UsageError: several workers of a training would share a GPU.
    """
    gpus, workers = recipe.cluster.gpus, recipe.cluster.workers
    if gpus != "auto" and workers > 1 and gpus % 1:
        raise UsageError(
            f"cluster.gpus={gpus:g}: {workers} workers of one training cannot share a GPU, because NCCL rejects it",
            "--set cluster.gpus=1, or --workers 1",
        )


def _is_alone(cluster: Cluster) -> bool:
    """Whether this process trains; else a Ray worker group does. The head of a cluster does not train."""
    if cluster.workers > 1 or not os.environ.get("GENFLOW_CLUSTER"):
        return cluster.workers == 1
    if IN_A_JOB in os.environ:
        return False
    from jobs.runtime.gpus import requested  # imports Ray, to which the task of a pipeline is connected

    return not requested(cluster)  # a lost node with a GPU is replaced, and the worker resumes on the new one


def _device(run: RunPlan) -> str:
    from jobs.runtime.gpus import wanted_here

    return devices.choose(wanted_here(run.recipe.cluster))


def _fit(store: Store, run: RunPlan, emit: Emit) -> None:
    """Run the training in this process, or in a Ray worker group."""
    cluster, on_cluster = run.recipe.cluster, bool(os.environ.get("GENFLOW_CLUSTER"))
    alone = _is_alone(cluster)
    settings = {
        "store": store.url,
        "recipe": run.recipe if alone else run.recipe.model_dump(mode="json"),
        "run": run.id,
        "alone": alone,
    }
    if alone:
        from jobs.runtime.train.worker import work

        work(settings)
        return
    needed = math.ceil(cluster.workers * cluster.cpus)
    if not on_cluster and needed > environment.cores():
        emit("warning", message=f"{cluster.workers} workers share the {environment.cores()} cores of this machine")
    with ray_cluster(num_cpus=max(environment.cores(), needed)):
        from jobs.runtime import gpus, resources
        from jobs.runtime.train import waiting, worker_group

        each = gpus.requested(cluster)
        if (nodes := resources.node_resources()) is not None:
            capacity.require(nodes, cluster.workers, cluster.cpus, each)
        if resources.are_busy(cluster, each):
            emit("note", message=f"the cluster is busy: waiting for {waiting.asked(cluster, each)}")
        worker_group.run_on_ray(settings, cluster, spread=on_cluster, gpus=each)


def _describe(store: Store, run: RunPlan) -> dict[str, Any]:
    """The metadata for the run's manifest.

    Raises:
        GenflowError: the run has no checkpoint.
    """
    weights = Checkpoints(store.folder("runs", run.id) / "checkpoints").newest()
    if weights is None:
        raise GenflowError(f"the run {run.id} ended without a checkpoint", "run the same command again")
    state = read_state(weights)
    history = (state.get("moments") or {}).get("history", [])
    stopped = bool(run.recipe.train.patience and history and history[-1]["position"] < 1)
    return {
        "family": run.recipe.family["kind"],
        "net": run.recipe.net["kind"],
        "init": run.recipe.init,
        "dataset": run.dataset.id,
        "dataset_name": run.dataset.name,
        "latents": run.recipe.data.latents,
        "texts": run.recipe.data.text,
        "fingerprint": run.data_facts.fingerprint,
        "steps": state["step"],
        "images": state["images"],
        "seconds": round(state["seconds"], 2),
        "cpu_seconds": round(state["cpu_seconds"], 2),
        "parameters": state["parameters"],
        "world": run.recipe.cluster.workers,
        "passes": round(state["images"] / _rows(store, run), 4),
        "passes_before": _passes_before(store, run),
        "trend": verdict.of_history(history) or _trend_of_losses(store, run),
        "stopped_early": stopped,
        "machine": f"{platform.system()} {platform.machine()}, {environment.cores()} cores",
    }


def _rows(store: Store, run: RunPlan) -> int:
    """The number of training rows: of the dataset, of its latents, or of a teacher's pairs."""
    pairs = run.recipe.data.pairs
    return int(store.find("pairs", pairs).meta["pairs"]) if pairs else run.facts.splits["train"]


def _passes_before(store: Store, run: RunPlan) -> float:
    """The passes over the same data of the run that this one starts from."""
    before = store.get("runs", run.recipe.init) if run.recipe.init else None
    same = before is not None and before.meta.get("fingerprint") == run.data_facts.fingerprint
    return (verdict.passes_of(before.meta) or 0.0) if before and same else 0.0


def _trend_of_losses(store: Store, run: RunPlan) -> verdict.Trend | None:
    """The trend of the training loss, from the journal; None if the loss does not show the progress."""
    if not families.family_class(run.recipe.family["kind"]).validates:
        return None
    found = curves(journal_path(store.root, run.id))
    return verdict.of_losses(next((points for name, points in found.items() if name.startswith("train/loss")), []))


if __name__ == "__main__":
    execute(main)
