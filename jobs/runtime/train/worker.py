"""One worker of a training run, inside Ray Train: open the data, build the family, fit it."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch

import genflow.runs as runs
from genflow.data.ahead import ahead
from genflow.data.preview import render
from genflow.data.shards import Dataset
from genflow.data.stream import Stream
from genflow.errors import SetupError
from genflow.recipe.schema import Recipe, parse
from genflow.sampling.engine import RECIPE, Engine
from genflow.storage.files import write_atomically
from genflow.storage.store import Store
from genflow.system import devices, events
from genflow.tracking.journal import Journal, journal_path
from genflow.training import loop
from genflow.training.checkpoint import Checkpoints
from genflow.training.session import Session
from jobs.runtime import gpus
from jobs.runtime.train.prometheus import TrainingGauges
from jobs.runtime.train.stop_signal import StopPoller

GRID_COLUMNS, GRID_ROWS = 10, 6


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
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    folder = store.folder("runs", settings["run"])
    _require_store(store, folder)
    data = runs.training_data(store, recipe)
    family, rows = runs.initial_family(store, recipe, data.facts), runs.training_rows(store, recipe, data)
    device = _device(recipe, settings)
    batch, seed, flip = recipe.train.batch, recipe.train.seed, recipe.data.flip
    texts = runs.texts_of(store, recipe)
    full_batches = Stream(rows, batch, seed, device=device, flip=flip, texts=texts)
    batches = Stream(rows, batch, seed, rank, world, device, flip=flip, texts=texts)
    next_batches = ahead(batches, device)
    journal = Journal(journal_path(store.root, settings["run"])) if rank == 0 else None
    checkpoints = Checkpoints(folder / "checkpoints")

    def log(numbers: dict[str, Any]) -> None:
        assert journal is not None
        _log_numbers(numbers, journal, recipe, settings["run"])

    gauges = _ignore if settings["alone"] or rank else TrainingGauges(settings["run"], recipe.family["kind"])

    autoencoder = runs.autoencoder_of(folder, data.facts) if rank == 0 else None
    prompts = runs.prompts_of(folder, data.facts) if rank == 0 else None

    def draw_grid(step: int, average: dict[str, torch.Tensor]) -> None:
        file = folder / "samples" / f"step_{step:08d}.png"
        try:  # without a full copy, every worker would have to draw
            drawn = runs.initial_family(store, recipe, data.facts).to(device) if session.sharded else family
            engine = Engine(drawn, recipe, device=device, frozen=False, autoencoder=autoencoder, prompts=prompts)
            loop.with_average(drawn, average, lambda: write_atomically(file, _preview(engine, data)))
        except torch.OutOfMemoryError:
            if not session.sharded:
                raise
            events.emit("note", message=f"no pictures at step {step:,}: the whole net does not fit on one GPU")
            return
        assert journal is not None
        store.upload(file)
        journal.image(step, "samples/ema", file)

    def save(step: int, write: Callable[[Path], None]) -> None:
        assert journal is not None
        journal.sync_with_bucket()  # before the checkpoint: a resumed run does not log earlier steps again
        checkpoints.save(step, write)

    with StopOnSignal(settings["alone"]) as stop:
        should_stop = stop if settings["alone"] else StopPoller(settings["stop_flag"]) if rank == 0 else bool
        session = Session(
            rank=rank, world=world, device=device, threads=recipe.train.threads or 1,
            sharded=recipe.cluster.strategy == "fsdp", load=checkpoints.newest, open=checkpoints.open,
            save=save, log=log, watch=gauges, note=lambda text: events.emit("note", message=text),
            should_stop=should_stop, barrier=_ignore if settings["alone"] else ray.train.report,
        )  # fmt: skip
        try:
            fitted = loop.fit(family, next_batches or batches, session, recipe.train, draw_grid, full_batches)
        finally:
            if next_batches:
                next_batches.close()
            if journal:
                journal.close()
    if rank == 0 and not fitted.done and not settings["alone"]:
        events.emit("note", message=f"saved at step {fitted.step}")
    if stop.signum and not fitted.done:
        events.emit("note", message=f"saved at step {fitted.step}")
        raise KeyboardInterrupt(signal.Signals(stop.signum).name)


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
    return str(ray.train.torch.get_device())


def _log_numbers(numbers: dict[str, Any], journal: Journal, recipe: Recipe, run: str) -> None:
    """Write a step's numbers to the journal, and emit the progress event."""
    step, position = numbers["step"], numbers["position"]
    journal.metrics(step, {f"train/{name}": x for name, x in numbers.items() if name not in ("step", "position")})
    left = numbers["seconds"] * (1 - position) / position if position > 0 else None
    events.emit(
        "progress", stage="train", run=run, family=recipe.family["kind"], step=step, position=position,
        steps=None if recipe.train.minutes or recipe.train.cpu_minutes else recipe.train.steps,
        loss=next(x for name, x in numbers.items() if name.startswith("loss")),
        images_per_second=numbers["images_per_second"], eta=left,
    )  # fmt: skip


def _preview(engine: Engine, data: Dataset) -> bytes:
    """A grid of samples with fixed seeds; with classes, each column has one class.

    Of an autoencoder, rows of held-out pictures above their reconstructions.
    """
    if engine.family.is_autoencoder:
        split = data.splits[data.reference]
        columns, pairs = min(GRID_COLUMNS, len(split)), min(GRID_ROWS // 2, -(-len(split) // GRID_COLUMNS))
        lines = np.linspace(0, len(split) - 1, pairs * columns).astype(int).reshape(pairs, columns)
        pictures = [split.take(line) for line in lines]
        both = [part for line in pictures for part in (line, engine.reconstruct(line))]
        return render(np.concatenate(both), engine.facts, columns)
    classes = engine.facts.classes
    count = GRID_COLUMNS * GRID_ROWS
    if engine.prompts:
        captions = engine.prompts.examples(GRID_COLUMNS) * GRID_ROWS
        return render(engine.draw(range(count), prompts=captions).images, engine.facts, GRID_COLUMNS)
    labels = None
    if classes:  # of more classes than columns some are shown, evenly spread
        step = max(1.0, classes / GRID_COLUMNS)
        labels = [int(i * step) % classes for i in range(GRID_COLUMNS)] * GRID_ROWS
    return render(engine.draw(range(count), labels).images, engine.facts, GRID_COLUMNS)


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
