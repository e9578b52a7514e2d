"""What the stages that write shards have in common: find the artifact, or lock, write, measure and finalize it."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from genflow.storage.files import explain_disk_errors
from genflow.storage.store import Artifact, Store


class Plan(Protocol):
    """An artifact that may not exist yet."""

    @property
    def id(self) -> str:
        """`<name>-<content address>`."""
        ...

    @property
    def name(self) -> str:
        """The name without the hash."""
        ...

    @property
    def parents(self) -> list[str]:
        """The ids of the artifacts that it is made from."""
        ...


def make(
    store: Store, kind: str, task: Plan, *,
    write: Callable[[Path], float], finish: Callable[[Path], Mapping[str, Any]],
) -> tuple[Artifact, bool]:  # fmt: skip
    """The artifact of a plan, and whether it existed. Shards of an interrupted attempt are kept, from any machine.

    Args:
        store: where it is.
        kind: of the artifact.
        task: the plan.
        write: writes the missing files into the folder, and returns the CPU seconds of all.
        finish: reads the whole folder, and returns the metadata without the time that it took.

    Raises:
        ResourceError: the disk is full.
    """
    started = time.monotonic()
    if done := store.get(kind, task.id):  # without the lock, so that a read-only store is enough
        return done, True
    with store.lock(kind, task.id, wait=True, uses=task.parents):
        if done := store.get(kind, task.id):
            return done, True
        folder = store.folder(kind, task.id)
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _download(store, folder)
        cpu_seconds = write(folder)
        with explain_disk_errors(folder):
            _download(store, folder)
            meta = finish(folder)
        times = {"seconds": round(time.monotonic() - started, 1), "cpu_seconds": cpu_seconds}
        artifact = store.finalize(
            kind, task.id, name=task.name, parents=task.parents, meta={**meta, **times},
            only=lambda name: ".tmp-" not in name,
        )  # fmt: skip
    return artifact, False


def _download(store: Store, folder: Path) -> None:
    """Fetch what earlier attempts and actors on other machines wrote."""
    if store.mirror:
        store.mirror.download_missing(folder)
