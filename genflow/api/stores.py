"""What a store holds: runs and datasets, as tables and one by one."""

from pathlib import Path
from typing import Any

from genflow.api.datasets import Data
from genflow.api.run import Run
from genflow.api.tables import Table
from genflow.commands import listing
from genflow.commands.references import find_named, find_run, kind_of_data
from genflow.data.preview import thumbnail
from genflow.errors import DataError, UsageError
from genflow.specs import DataSpec
from genflow.storage.manifest import warn
from genflow.storage.store import Store

Place = str | Path | Store | None  # a store: a folder or URL; None: GENFLOW_STORE, or .genflow in the current folder


def store_at(place: Place) -> Store:
    """The store at a place."""
    return place if isinstance(place, Store) else Store(place)


def load(run: str | Run = "latest", *, store: Place = None) -> Run:
    """A finished run.

    Args:
        run: its id, the first characters of the id, its name, `latest`, `best:fd` (or another metric), or MLflow's
            `models:/NAME@ALIAS`.
        store: a folder or URL; None: GENFLOW_STORE, or `.genflow` in the current folder.

    Raises:
        UsageError: there is no such run.
    """
    if isinstance(run, Run):
        return run
    place = store_at(store)
    return Run(find_run(place, run), place)


def data(dataset: str | Data = "latest", *, split: str = "train", store: Place = None) -> Data:
    """The rows of a prepared dataset, or of latents.

    Args:
        dataset: its id, the first characters of the id, its name, or `latest`.
        split: train, val or test.
        store: as in `load`.

    Raises:
        UsageError: there is no such dataset or split.
        DataError: a file is missing or corrupt.
    """
    if isinstance(dataset, Data):
        return dataset.split(split)
    place = store_at(store)
    if (kind := kind_of_data(place, dataset)) == "texts":
        raise UsageError(f"{dataset} are text embeddings, not pictures", "genflow data show prints what they are")
    return Data(find_named(place, kind, dataset), split)


def runs(*, sort: str = "made", store: Place = None) -> Table:
    """The runs of a store: finished ones, those that are trained now, and interrupted ones.

    `fd`, `x_floor` (its multiple of the fd of real pictures) and `bits_per_dim` are those of the evaluation with the
    most samples.

    Args:
        sort: made, fd, floor, bits, minutes, name, family or data; smallest first.
        store: as in `load`.
    """
    place = store_at(store)
    rows = listing.sort_runs(listing.runs(place), sort)
    columns: dict[str, list[Any]] = {
        "samples": [listing.picture(place, row) for row in rows],
        "run": [row.run for row in rows],
        "family": [row.family for row in rows],
        "data": [row.dataset for row in rows],
        "fd": [row.fd for row in rows],
        "x_floor": [row.floors for row in rows],
        "bits_per_dim": [(row.likelihood or {}).get("value") for row in rows],
        "steps": [row.steps for row in rows],
        "minutes": [row.minutes for row in rows],
        "made": [row.made for row in rows],
        "state": [row.state for row in rows],
    }
    return Table(columns)


def datasets(*, store: Place = None) -> Table:
    """The datasets of a store, oldest first.

    Args:
        store: as in `load`.
    """
    found = store_at(store).artifacts("datasets")
    facts = [DataSpec.from_json(dataset.meta["facts"]) for dataset in found]
    columns: dict[str, list[Any]] = {
        "pictures": [_thumbnail(dataset) for dataset in found],
        "dataset": [dataset.id for dataset in found],
        "name": [dataset.name for dataset in found],
        "shape": [listing.pixels(spec) for spec in facts],
        "rows": [sum(spec.splits.values()) for spec in facts],
        "classes": [spec.classes for spec in facts],
        "captions": [spec.captions for spec in facts],
        "made": [dataset.manifest.get("created") for dataset in found],
    }
    return Table(columns)


def _thumbnail(dataset: Any) -> bytes | None:
    """The thumbnail of a dataset; None, and a warning, if a file is damaged."""
    try:
        return thumbnail(dataset)
    except DataError as error:
        warn(error)
        return None
