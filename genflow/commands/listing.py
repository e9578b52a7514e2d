"""The runs and the datasets of a store as rows, for `genflow runs ls`, the Python API and the page of a store."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genflow.errors import GenflowError, UsageError, nearest
from genflow.evaluation.results import floors, headlines
from genflow.recipe.files import read
from genflow.specs import DataSpec
from genflow.storage.artifact import Artifact
from genflow.storage.manifest import warn
from genflow.storage.store import Store
from genflow.system.documents import Json

FINISHED, TRAINING, UNFINISHED = "finished", "training", "unfinished"
ORDERS = ("made", "fd", "floor", "bits", "minutes", "name", "family", "data")


@dataclass(frozen=True)
class RunRow:
    """A run in a list.

    Args:
        run, name: its id, and the name without the hash.
        family, dataset, latents: its family, and the ids of what it learned; empty if they are unknown.
        state: finished, training, or unfinished: interrupted, and to be resumed by the same command.
        process: the process that trains it now, such as `123 on host`; empty if there is none.
        steps: done so far.
        seconds: wall-clock time of training so far; None if it is unknown.
        made: when it finished, in seconds since 1970; None if it has not.
        measured: the `genflow.evaluate/1` document with its figures (`results.headlines`); None if there is none.
        picture: the newest grid of its samples; None if there is none.
    """

    run: str
    name: str
    family: str = ""
    dataset: str = ""
    latents: str = ""
    state: str = FINISHED
    process: str = ""
    steps: int | None = None
    seconds: float | None = None
    made: float | None = None
    measured: Json | None = None
    picture: Path | None = None

    @property
    def fd(self) -> float | None:
        """The Fréchet distance."""
        return self.measured["metrics"]["fd"]["value"] if self.measured else None

    @property
    def floors(self) -> float | None:
        """The fd as a multiple of the fd of real pictures, which can be compared between datasets."""
        return floors(self.measured) if self.measured else None

    @property
    def likelihood(self) -> Json | None:
        """The likelihood; None if the family has none."""
        return self.measured.get("likelihood") if self.measured else None

    @property
    def minutes(self) -> float | None:
        """Wall-clock minutes of training."""
        return None if self.seconds is None else self.seconds / 60

    def order(self, by: str) -> Any:
        """What `sort_runs` compares; None comes last."""
        bits = (self.likelihood or {}).get("value")
        values = {"made": self.made, "fd": self.fd, "floor": self.floors, "bits": bits, "minutes": self.minutes,
                  "name": self.name, "family": self.family, "data": self.dataset}  # fmt: skip
        return values[by]


def runs(store: Store, every: list[Artifact] | None = None) -> list[RunRow]:
    """The runs of a store: the finished ones, oldest first, then those that are trained now or were interrupted.

    Args:
        store: holds them.
        every: the finished runs, if the caller has listed them; None: list them here, and warn about damaged ones.
    """
    damaged: set[str] = set()
    if every is None:
        every, errors = store.scan("runs")
        damaged = set(errors)
        for error in errors.values():
            warn(error)
    measured = headlines(store)
    rows = [_finished(run, measured.get(run.id)) for run in every]
    known = {run.id for run in every} | damaged
    return rows + [_unfinished(store, id) for id in store.names("runs") if id not in known]


def row_of(store: Store, run: Artifact) -> RunRow:
    """The row of one finished run."""
    return _finished(run, headlines(store).get(run.id))


def sort_runs(rows: list[RunRow], by: str) -> list[RunRow]:
    """The rows in an order of `ORDERS`, smallest first; rows without the value come last.

    Raises:
        UsageError: there is no such order.
    """
    if by not in ORDERS:
        raise UsageError(f"--sort {by}: no such order{nearest(by, list(ORDERS))}", f"--sort {' | '.join(ORDERS)}")
    known = [row for row in rows if row.order(by) not in (None, "")]
    return sorted(known, key=lambda row: row.order(by)) + [row for row in rows if row not in known]


def picture(store: Store, row: RunRow) -> bytes | None:
    """The newest grid of a run's samples as PNG; None if there is none."""
    return row.picture.read_bytes() if row.picture and store.available(row.picture) else None


def headline(row: RunRow) -> str:
    """What one line says of a run: its fd, the multiple of the floor, bits/dim, and the time of training."""
    from genflow.evaluation.headline import headline as quality

    parts = [f"{row.steps:,} steps" if row.steps is not None else "", minutes(row.minutes)]
    if row.measured and row.fd is not None:
        parts = [*quality(row.measured), *parts]
    elif row.state == FINISHED:
        parts.insert(0, "not measured yet")
    return " · ".join(part for part in parts if part)


def minutes(value: float | None) -> str:
    """Minutes as text, such as `3.2 min`; empty if they are unknown."""
    if value is None:
        return ""
    return f"{value:.1f} min" if value < 100 else f"{value:,.0f} min"


def _finished(run: Artifact, measured: Json | None) -> RunRow:
    pictures = run.files("samples/*.png")
    family, dataset, latents = (str(run.meta.get(key) or "") for key in ("family", "dataset", "latents"))
    return RunRow(
        run.id, run.name, family, dataset, latents, steps=run.meta.get("steps"),
        seconds=run.meta.get("seconds"), made=run.manifest.get("created"), measured=measured,
        picture=run.folder / pictures[-1] if pictures else None,
    )  # fmt: skip


def _unfinished(store: Store, id: str) -> RunRow:
    """A run that is trained now, or that was interrupted."""
    folder, process = store.folder("runs", id), store.holder("runs", id)
    family = data = latents = ""
    with contextlib.suppress(GenflowError, OSError, AttributeError, KeyError, TypeError):
        recipe = read(folder / "recipe.yaml")
        family, data = str(recipe["family"].get("kind", "")), str(recipe["data"].get("name", ""))
        latents = str(recipe["data"].get("latents", ""))
    saved = sorted(path.name for path in folder.glob("checkpoints/step_*") if ".tmp-" not in path.name)
    step = int(saved[-1].removeprefix("step_")) if saved else None
    seconds = None
    if process:
        step, seconds = _progress(store, id, step)
    pictures = sorted(folder.glob("samples/*.png"))
    return RunRow(
        id, id.rpartition("-")[0], family, data, latents, TRAINING if process else UNFINISHED, process, step, seconds,
        picture=pictures[-1] if pictures else None,
    )  # fmt: skip


def _progress(store: Store, id: str, saved: int | None) -> tuple[int | None, float | None]:
    """The last step in the journal of a run that is trained now, and the seconds since the journal began."""
    from genflow.tracking.journal import entries, journal_path

    step, began = saved, None
    with contextlib.suppress(OSError):
        for _, entry in entries(journal_path(store.root, id)):
            began = began or entry.get("t")
            step = entry["step"] if entry.get("stream") == "train" else step
    return step, time.time() - began / 1000 if began else None


def pixels(facts: DataSpec) -> str:
    """The form of a dataset's rows: C×H×W, or `points`."""
    return "points" if facts.is_points else "×".join(str(n) for n in facts.shape)
