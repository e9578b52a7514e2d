"""What a training run shows and records while it trains: size, forecast, progress, losses and pictures.

Events reach the command, numbers and pictures the journal, and files the run's folder.
"""

import base64
import time
from pathlib import Path
from typing import Any

import torch

import genflow.runs as runs
from genflow.data import preview
from genflow.data.shards import Dataset
from genflow.families.base import Family
from genflow.recipe.schema import Recipe
from genflow.sampling.engine import Engine
from genflow.sampling.prompts import Prompts
from genflow.sampling.training_pictures import ANIMATION, SAMPLES, Samples, animate, strip
from genflow.storage.files import write_atomically
from genflow.storage.store import Store
from genflow.system import events
from genflow.tracking.journal import Journal
from genflow.training import forecast
from genflow.training.ema import with_average
from genflow.training.moments import Forecast

TICK_SECONDS = 2.0  # between two progress events that have no new loss
LAST_GRID = 10  # the picture at the end may take so many times the work of a moment, because the budget is used up


class Display:
    """The callbacks of worker 0 of a run.

    Args:
        store: holds the run.
        recipe: of the run.
        run: its id.
        data: that it learns.
        family: in training.
        journal: of the run.
        rows: the number of training rows.
        device: of the family.
        autoencoder: of latents; else None.
        prompts: of captions; else None.
    """

    def __init__(
        self, store: Store, recipe: Recipe, run: str, data: Dataset, family: Family, journal: Journal, *, rows: int,
        device: str, autoencoder: Family | None, prompts: Prompts | None,
    ) -> None:  # fmt: skip
        self._store, self._recipe, self._run, self._data, self._family = store, recipe, run, data, family
        self._journal, self._rows, self._device = journal, rows, device
        self._shared: dict[str, Any] = {"autoencoder": autoencoder, "prompts": prompts}
        self._shared |= {"device": device, "frozen": False}
        self._folder = store.folder("runs", run)
        self._sharded = recipe.cluster.strategy == "fsdp"
        self._samples = Samples(Engine(family, recipe, **self._shared), data)
        self._loss: float | None = None
        self._validation: float | None = None
        self._rate = 0.0
        self._shown_at = time.monotonic()
        self._began: tuple[float, float] | None = None  # time and position of the first tick
        self._work: float | None = None

    def callbacks(self) -> dict[str, Any]:
        """For a `Session`."""
        own = {"log": self.log, "expect": self.expect, "validated": self.validated, "tick": self.tick}
        return {**own, "draw": self.draw}

    def introduce(self) -> None:
        """Say how large the net and the data are, and what the first step waits for."""
        weights = sum(p.numel() for p in self._family.parameters())
        events.emit("plan", message=forecast.size(self._recipe, self._data.facts, weights, self._rows))
        what = "compiling the net in the first step" if self._recipe.train.compile else "the first step"
        events.emit("waiting", stage="train", run=self._run, what=what)

    def expect(self, steps: int) -> None:
        """Say how many passes over the data the budget gives, and what would give more if these are few."""
        for line in forecast.passes(self._recipe, self._data.facts, steps, self._rows):
            events.emit("plan", message=line)

    def log(self, numbers: dict[str, Any]) -> None:
        """Write a step's numbers to the journal, and show the progress."""
        step, position = numbers["step"], numbers["position"]
        values = {f"train/{name}": x for name, x in numbers.items() if name not in ("step", "position")}
        self._journal.metrics(step, values)
        self._loss = next(x for name, x in numbers.items() if name.startswith("loss"))
        self._rate = numbers["images_per_second"]
        left = numbers["seconds"] * (1 - position) / position if position > 0 else None
        self._progress(step, position, left)

    def tick(self, step: int, position: float) -> None:
        """Show the progress between two reports, if they are seconds apart. It reads nothing from the device."""
        now = time.monotonic()
        self._began = self._began or (now, position)
        if now - self._shown_at >= TICK_SECONDS:
            began, first = self._began
            left = (now - began) * (1 - position) / (position - first) if position > first else None
            self._progress(step, position, left)

    def _progress(self, step: int, position: float, left: float | None) -> None:
        train = self._recipe.train
        self._shown_at = time.monotonic()
        events.emit(
            "progress", stage="train", run=self._run, family=self._recipe.family["kind"], step=step, position=position,
            steps=None if train.minutes or train.cpu_minutes else train.steps, loss=self._loss,
            validation=self._validation, images_per_second=self._rate or None, eta=left,
        )  # fmt: skip

    def validated(self, step: int, loss: float) -> None:
        """Record the loss on held-out rows."""
        self._validation = loss
        self._journal.metrics(step, {"val/loss": loss})

    def draw(self, step: int, average: dict[str, torch.Tensor] | None, work: float) -> None:
        """Draw the samples of a moment; without an average, those of the initial weights."""
        self._work = work
        try:
            with torch.random.fork_rng(devices=[], enabled=average is None or self._sharded):
                samples = self._drawn(average)
            found: list[bytes] = []
            with_average(samples.engine.family, average or {}, lambda: found.append(self._show(step, samples, work)))
        except torch.OutOfMemoryError:
            if not self._sharded:
                raise
            events.emit("note", message=f"no pictures at step {step:,}: the whole net does not fit on one GPU")
            return
        self._save(step, found[0])

    def end(self, step: int, average: dict[str, torch.Tensor]) -> None:
        """Draw the last samples: a large grid, and the last picture of the animation."""
        if self._work is None:  # the run was complete but for its last pictures
            self._work = Forecast.of(step, self._recipe.train.batch).work
        work = self._work
        try:
            samples = self._drawn(average)
            last: list[bytes] = []
            with_average(samples.engine.family, average, lambda: last.append(self._show(step, samples, work)))
            with_average(samples.engine.family, average, lambda: last.append(self._grid(samples)))
        except torch.OutOfMemoryError:
            if not self._sharded:
                raise
            return
        frames = sorted((self._folder / SAMPLES).glob("step_*.png"))
        frames = [file for file in frames if file.name != f"step_{step:08d}.png"]
        self._save(step, last[1])
        if animation := animate(frames, last[0], self._folder / ANIMATION):
            self._store.upload(animation)
            self._journal.artifact(animation)

    def forget_after(self, checkpoint: Path | None) -> None:
        """Delete the pictures of steps after a checkpoint, which an attempt left that was killed."""
        step = int(checkpoint.name.removeprefix("step_")) if checkpoint else -1
        for file in (self._folder / SAMPLES).glob("step_*.png"):
            if int(file.stem.removeprefix("step_")) > step:
                file.unlink(missing_ok=True)

    def _drawn(self, average: dict[str, torch.Tensor] | None) -> Samples:
        """The samples of the family in training; of a second family where that has shards, or no initial weights."""
        if average is not None and not self._sharded:
            return self._samples
        family = runs.initial_family(self._store, self._recipe, self._data.facts).to(self._device)
        return Samples(Engine(family, self._recipe, **self._shared), self._data)

    def _show(self, step: int, samples: Samples, work: float) -> bytes:
        """Draw a moment's samples, show some in the terminal, and return the picture."""
        records, layout = samples.draw(work)
        png, count = strip(records, samples, layout)
        data = base64.b64encode(png).decode()
        events.emit("picture", stage="train", run=self._run, step=step, count=count, png=data)
        return preview.render(records, samples.engine.facts, layout.columns, samples.limit)

    def _grid(self, samples: Samples) -> bytes:
        assert self._work is not None
        records, layout = samples.draw(LAST_GRID * self._work, padded=True)
        return preview.render(records, samples.engine.facts, layout.columns, samples.limit)

    def _save(self, step: int, png: bytes) -> None:
        file = write_atomically(self._folder / SAMPLES / f"step_{step:08d}.png", png)
        self._store.upload(file)
        self._journal.image(step, "samples/ema", file)
