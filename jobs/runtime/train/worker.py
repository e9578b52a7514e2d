"""One worker of a training run: open the data, build the family, fit it.

It runs inside Ray Train or, if it is the only worker, in the job's process, which then does not import Ray.
"""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import genflow.runs as runs
from genflow.data.ahead import ahead
from genflow.data.shards import Dataset
from genflow.data.stream import Stream
from genflow.errors import SetupError, UsageError
from genflow.families.base import Family
from genflow.recipe.schema import Recipe, parse
from genflow.sampling.engine import RECIPE
from genflow.sampling.held_out import held_out
from genflow.storage.store import Store
from genflow.system import devices, events
from genflow.tracking.journal import Journal, journal_path
from genflow.training import compilation, loop
from genflow.training.checkpoint_folders import Checkpoints
from genflow.training.moments import GROUPS
from genflow.training.session import Session
from jobs.runtime import gpus
from jobs.runtime.train.display import Display


def work(settings: dict[str, Any]) -> None:
    """Train this worker's share of a run.

    Args:
        settings: plain values, because a worker may run on another machine: `store`, `recipe`,
            `run` (its id), and `alone`: whether this is the only worker, in the job's process. Otherwise
            `stop_flag` is the actor to poll, and `gpus` are the GPUs of each worker. With `alone`, `recipe` may be a
            validated `Recipe`.

    Raises:
        SetupError: this node does not see the store that the job's process uses.
        KeyboardInterrupt: a signal asked the only worker to stop; its state is saved.
    """
    store, recipe = _store(settings["store"]), settings["recipe"]
    if not isinstance(recipe, Recipe):
        recipe = parse(recipe)
    group = None if settings["alone"] else _Group(settings)
    rank, world = (group.rank, group.world) if group else (0, 1)
    folder = store.folder("runs", settings["run"])
    _require_store(store, folder)
    if rank == 0:
        events.emit("waiting", stage="train", run=settings["run"], what="opening the data")
    data = runs.training_data(store, recipe)
    family, rows = runs.initial_family(store, recipe, data.facts), runs.training_rows(store, recipe, data)
    device = _device(recipe, settings)
    batch, seed, flip = recipe.train.batch, recipe.train.seed, recipe.data.flip
    texts = runs.texts_of(store, recipe)
    full_batches = Stream(rows, batch, seed, device=device, flip=flip, texts=texts)
    batches = Stream(rows, batch, seed, rank, world, device, flip=flip, texts=texts)
    next_batches = ahead(batches, device, decodes=data.facts.is_encoded and not recipe.data.pairs)
    journal = Journal(journal_path(store.root, settings["run"])) if rank == 0 else None
    # The journal first: a resumed run does not log earlier steps again.
    checkpoints = Checkpoints(folder / "checkpoints", before=journal.sync_with_bucket if journal else _ignore)
    sharded = recipe.cluster.strategy == "fsdp"
    if sharded and world > 1:
        checkpoints.abandon()  # what killed workers left in this machine's mirror
    autoencoder = runs.autoencoder_of(folder, data.facts)
    validation = _validation(store, recipe, data, family, device, autoencoder)
    display = None
    if journal:
        prompts = runs.prompts_of(folder, data.facts)
        display = Display(store, recipe, settings["run"], data, family, journal, rows=len(rows), device=device,
                          autoencoder=autoencoder, prompts=prompts)  # fmt: skip
        display.introduce()

    def load() -> Path | None:
        newest = checkpoints.newest()
        if display:
            display.forget_after(newest)
        return newest

    on_end = display.end if display else _ignore
    with StopOnSignal(settings["alone"]) as stop:
        session = Session(
            rank=rank, world=world, device=device, threads=recipe.train.threads or 1,
            sharded=sharded, load=load, open=checkpoints.open, save=checkpoints.save, shards=checkpoints,
            watch=group.gauges(recipe) if group else _ignore, barrier=group.report if group else _ignore,
            should_stop=group.should_stop() if group else stop, held_out=validation,
            note=lambda text: events.emit("note", message=text),
            **(display.callbacks() if display else {"draw": _ignore}),
        )  # fmt: skip
        try:
            with compilation.cache_of(settings["run"]):
                fitted = loop.fit(family, next_batches or batches, session, recipe.train, on_end, full_batches)
        finally:
            if next_batches:
                next_batches.close()
            if journal:
                journal.close()
    if fitted.done:
        compilation.forget(settings["run"])
    if rank == 0 and not fitted.done and not settings["alone"]:
        events.emit("note", message=f"saved at step {fitted.step}")
    if stop.signum and not fitted.done:
        events.emit("note", message=f"saved at step {fitted.step}")
        raise KeyboardInterrupt(signal.Signals(stop.signum).name)


def _validation(
    store: Store, recipe: Recipe, data: Dataset, family: Family, device: str, autoencoder: Family | None
) -> Any:
    """The held-out rows of a run, for `Session.held_out`; None without a loss on them.

    Raises:
        UsageError: the recipe asks to stop early, which needs the loss.
    """
    found, why = None, f"the losses of {family.title} do not show its progress"
    if family.validates and recipe.data.pairs:
        why = "the pairs of a teacher are all used for training"
    elif family.validates:
        why = f"{data.artifact.name} has no held-out rows"
        pictures = data if autoencoder is None else Dataset.open(store.find("datasets", recipe.data.name), verify=False)
        found = held_out(pictures, GROUPS, device, runs.texts_of(store, recipe), autoencoder)
    if recipe.train.patience and found is None:
        raise UsageError(f"train.patience: there is no held-out loss, because {why}", "--set train.patience=0")
    return found


def _ignore(*_: Any) -> None:
    return None


def _store(url: str) -> Store:
    """Open the store; the error says why this node cannot."""
    try:
        return Store(url)
    except SetupError as error:
        raise SetupError(f"the node {os.uname().nodename} does not reach the store {url}: {error.message}",
                         "give every node the AWS variables, or a role that may read and write there") from error


def _require_store(store: Store, run: Path) -> None:
    """Check that this node sees the store that the job's process writes to.

    Raises:
        SetupError: it does not.
    """
    if not store.available(run / RECIPE):
        raise SetupError(
            f"the node {os.uname().nodename} does not see the store {store.url} that the job writes to",
            "set GENFLOW_STORE to a folder that every node can see, or to s3://BUCKET/PREFIX",
        )


def _device(recipe: Recipe, settings: dict[str, Any]) -> str:
    """The GPU that Ray assigned to this worker, among those of its node's workers, which it sees; else the CPU.

    The only worker is in the job's process, and chooses its device as a command does.
    """
    if settings["alone"]:
        return devices.choose(gpus.wanted_here(recipe.cluster))
    if not settings["gpus"] or gpus.claim(recipe.cluster.device) == "cpu":
        return "cpu"
    import ray.train.torch

    return str(ray.train.torch.get_device())


class _Group:
    """This worker's place in a group of Ray Train.

    Args:
        settings: of `work`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import ray.train

        self._settings = settings
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.report: Callable[..., None] = ray.train.report

    def gauges(self, recipe: Recipe) -> Callable[..., None]:
        """Receives numbers for Prometheus, on worker 0."""
        from jobs.runtime.train.prometheus import TrainingGauges

        return _ignore if self.rank else TrainingGauges(self._settings["run"], recipe.family["kind"])

    def should_stop(self) -> Callable[[], bool]:
        """Returns whether the driver asked to stop, on worker 0."""
        from jobs.runtime.train.stop_signal import StopPoller

        return bool if self.rank else StopPoller(self._settings["stop_flag"])


class StopOnSignal:
    """Returns whether SIGINT or SIGTERM asked to stop, within the block. The second signal ends the process at once.

    Args:
        alone: whether this is the only worker; several poll a stop flag instead, and end at the same step.
    """

    def __init__(self, alone: bool) -> None:
        self.signum = 0
        self._signals = (signal.SIGINT, signal.SIGTERM) if alone and _is_main_thread() else ()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        self._before = {signum: signal.signal(signum, self._ask) for signum in self._signals}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _ask(self, signum: int, frame: object) -> None:
        if self.signum:
            raise KeyboardInterrupt(signal.Signals(signum).name)
        self.signum = signum

    def __call__(self) -> bool:
        return bool(self.signum)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
