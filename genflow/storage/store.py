"""The artifact store: a folder of artifacts. An artifact is a folder that exists only once its manifest is written.

    .genflow/
      datasets/<name>-<key>/      Arrow shards, facts.json
      latents/<name>-<key>/       Arrow shards of latents, facts.json, autoencoder/
      texts/<name>-<key>/         Arrow shards of text embeddings, texts.json
      features/<name>-<key>/      the feature extractor's network for one dataset
      runs/<name>-<key>/          recipe.yaml, facts.json, checkpoints/step_00001000/, samples/
      searches/<name>-<key>/      best.yaml, search.json, trials/0007/
      evaluations/<name>-<key>/   metrics.json, sample grids
      reports/<name>-<key>/       report.html
      answers/<hash>.json         what jobs returned (see `genflow.pipeline.answers`)
      journals/<run id>.jsonl     the measurements of a run (see `genflow.tracking.journal`)
      names/datasets/             what a name of several datasets means (see `genflow.storage.names`)

Commit protocol: files are written into `X.tmp-<attempt>` and fsynced; the manifest (schema, versions, parents, and the
size and SHA-256 of each file) is written last; then the folder is renamed and its parent fsynced. A reader therefore
sees the old state or the new one. A folder without a manifest is unfinished; one whose manifest is damaged is named
in a warning by commands that list, and is an error of a command that needs it. None of the file formats detects a
changed byte (a flipped bit in an Arrow file is read as data), so the hashes are checked on read.

A store may also be in a bucket, `s3://bucket/prefix`, with the same layout; `genflow.storage.mirror` keeps a copy on
each machine.
"""

import errno
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genflow.errors import DataError, GenflowError, SetupError
from genflow.storage import mirror
from genflow.storage.artifact import JOURNALED, Artifact
from genflow.storage.artifact_locks import Locks
from genflow.storage.files import (
    dead_leftovers,
    explain_disk_errors,
    remove_leftover,
    sync_folder,
    temporary_ending,
    write_atomically,
)  # fmt: skip
from genflow.storage.manifest import describe, read_manifest, warn
from genflow.storage.mirror import MANIFEST
from genflow.storage.names import Names
from genflow.storage.references import resolve


class Store:
    """Artifacts in a folder, or in a bucket that is mirrored on this machine.

    Args:
        root: the folder, or `s3://bucket/prefix`; None: GENFLOW_STORE, or `.genflow` in the current folder.

    Attributes:
        root: the folder; for a bucket, the folder of its mirror.
        mirror: the mirror of a bucket; None for a folder.
        url: opens the same store in another process or, for a bucket, on another machine.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        text = str(root or os.environ.get("GENFLOW_STORE") or ".genflow")
        self.mirror = mirror.for_url(text) if "://" in text else mirror.containing(Path(text).expanduser().absolute())
        if self.mirror:
            self.root, self.url = self.mirror.root, self.mirror.url
            self._locks = Locks(self.root, self.mirror)
            return
        self.root = Path(text).expanduser().absolute()
        self.url = str(self.root)
        self._locks = Locks(self.root, None)
        if self.root.exists() and not self.root.is_dir():
            raise SetupError(f"the store {self.root} is a file, not a folder", "set GENFLOW_STORE to a folder")

    def folder(self, kind: str, id: str) -> Path:
        """The artifact's path, whether it exists or not."""
        return self.root / kind / id

    def get(self, kind: str, id: str) -> Artifact | None:
        """The artifact; None if it is not finished.

        Raises:
            DataError: its manifest is damaged.
        """
        path = self.folder(kind, id)
        manifest = self.mirror.manifest(path) if self.mirror else read_manifest(path)
        if manifest and manifest.get("id", id) != id:
            raise DataError(f"{path / MANIFEST} is corrupt: it is the manifest of {manifest['id']}",
                            f"rm {path / MANIFEST}, then run the command that made it again")
        return self._artifact(kind, id, manifest) if manifest else None

    def get_or_warn(self, kind: str, id: str) -> Artifact | None:
        """The artifact; None if it is not finished, or if its manifest is damaged, which is named on stderr."""
        try:
            return self.get(kind, id)
        except DataError as error:
            warn(error)
            return None

    def _artifact(self, kind: str, id: str, manifest: dict[str, Any]) -> Artifact:
        return Artifact(kind, id, self.folder(kind, id), manifest, self.url if self.mirror else "")

    def names(self, kind: str) -> list[str]:
        """The ids of a kind, finished or not."""
        if self.mirror:
            return self.mirror.names(kind)
        folder = self.root / kind
        if not folder.is_dir():
            return []
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and ".tmp-" not in p.name)

    def artifacts(self, kind: str) -> list[Artifact]:
        """The finished artifacts of a kind, oldest first. One line on stderr names each damaged one."""
        found, damaged = self.scan(kind)
        for error in damaged.values():
            warn(error)
        return found

    def scan(self, kind: str) -> tuple[list[Artifact], dict[str, DataError]]:
        """The finished artifacts of a kind, oldest first, and the errors of those whose manifest is damaged, by id."""

        def read(id: str) -> Artifact | DataError | None:
            try:
                return self.get(kind, id)
            except DataError as error:
                return error

        names = self.names(kind)
        if self.mirror:
            with ThreadPoolExecutor(mirror.PARALLEL_TRANSFERS) as pool:
                every = list(pool.map(read, names))
        else:
            every = [read(name) for name in names]
        found = [artifact for artifact in every if isinstance(artifact, Artifact)]
        damaged = {name: error for name, error in zip(names, every, strict=True) if isinstance(error, DataError)}
        return sorted(found, key=lambda a: (a.manifest.get("created", 0), a.id)), damaged

    def find(self, kind: str, reference: str) -> Artifact:
        """An artifact by its id, a prefix of it, its name, or `latest`.

        If several datasets have the name, it means the one that `genflow prepare` named last; of another kind, the
        newest.

        Raises:
            UsageError: no artifact or several match; the message lists the existing ones.
            DataError: the manifest of an artifact of that id or name is damaged.
        """
        every, damaged = self.scan(kind)
        for id, error in damaged.items():
            if reference in (id, id.rpartition("-")[0], id.rpartition("-")[2]):
                raise error
            warn(error)
        records = functools.partial(self._names().records, "datasets")
        return resolve(kind, reference, every, damaged, records, self.url)

    def record_name(self, artifact: Artifact) -> str:
        """Record that the artifact's name means this one from now on, whichever others have the name.

        Returns:
            Why the name may mean another one; empty if it means this one.
        """
        try:
            with explain_disk_errors(self.root / "names"):
                self._names().record(artifact.kind, artifact.name, artifact.id)
        except (GenflowError, OSError) as error:
            return str(error) if self.same_name(artifact) else ""
        return ""

    def same_name(self, artifact: Artifact) -> list[Artifact]:
        """The other artifacts of its kind and name, oldest first."""
        return [a for a in self.artifacts(artifact.kind) if a.name == artifact.name and a.id != artifact.id]

    def reference(self, artifact: Artifact) -> str:
        """What a user may type for an artifact: its name if no other has it, else its id."""
        return artifact.id if self.same_name(artifact) else artifact.name

    def _names(self) -> Names:
        return Names(self.root, self.mirror.bucket if self.mirror else None)

    @contextmanager
    def stage(self, kind: str, id: str, *, name: str = "") -> Iterator["Staged"]:
        """A temporary folder. `staged.commit(...)` makes it the artifact; without a commit it is deleted at the end."""
        path = self.folder(kind, id)
        attempt = path.with_name(f"{path.name}{temporary_ending()}")
        with explain_disk_errors(path):
            self._finish_deletions(kind)
            attempt.mkdir(parents=True)
            staged = Staged(self, kind, id, name, attempt)
            try:
                yield staged
            finally:
                shutil.rmtree(attempt, ignore_errors=True)

    def finalize(self, kind: str, id: str, *, name: str = "", parents: list[str] | None = None,
             meta: dict[str, Any] | None = None, only: Callable[[str], bool] | None = None) -> Artifact:
        """Finish a folder that was filled in place, such as a run: write its manifest, last and atomically."""
        path = self.folder(kind, id)
        with explain_disk_errors(path):
            if self.mirror:
                self.mirror.download_missing(path)  # files that other machines wrote
            manifest = describe(path, kind, id, name=name, parents=parents, meta=meta, only=only)
            if self.mirror:
                self.mirror.upload_folder(path, path, manifest)
            write_atomically(path / MANIFEST, json.dumps(manifest, indent=1))
        return self._artifact(kind, id, manifest)

    def delete(self, kind: str, id: str) -> None:
        """Delete a folder of the store, finished or not, with its journals, its lock and its records of names.

        The folder is renamed first, so that the artifact stops existing at once. If this process is killed after that,
        the next command deletes the rest.

        Raises:
            UsageError: a process makes this artifact now.
        """
        folder = self.folder(kind, id)
        with self.lock(kind, id, wait=False), explain_disk_errors(folder):
            if self.mirror:
                self.mirror.delete_folder(folder)
            deleted = folder.with_name(f"{id}{temporary_ending()}")
            if folder.exists():
                os.rename(folder, deleted)
                sync_folder(folder.parent)
            self._delete_records(kind, id)
            shutil.rmtree(deleted, ignore_errors=True)
            self._locks.file(kind, id).unlink(missing_ok=True)
        self._finish_deletions(kind)

    def _finish_deletions(self, kind: str) -> None:
        """Delete the temporary folders of killed processes, and the journals of those that were deleting a run."""
        for leftover in dead_leftovers(self.root / kind):
            id = leftover.name.partition(".tmp-")[0]
            if not self.folder(kind, id).exists() and kind in JOURNALED and not self.mirror:
                self._delete_records(kind, id)
            remove_leftover(leftover)

    def _delete_records(self, kind: str, id: str) -> None:
        """Delete what the store has of an artifact outside its folder, except its lock."""
        if kind == "datasets":
            self._names().forget(kind, id)
        if kind not in JOURNALED:
            return
        with self.lock("journals", id):  # waits for a process that sends them to MLflow
            if self.mirror:
                for name in self.mirror.bucket.list("journals"):
                    if name.startswith(f"{id}."):
                        self.mirror.bucket.delete(f"journals/{name}")
            for file in (self.root / "journals").glob(f"{id}.*"):
                file.unlink(missing_ok=True)
            for lock in (self.root / "locks").glob(f"journals-{id}.*"):
                lock.unlink(missing_ok=True)

    def upload(self, *files: Path) -> None:
        """Upload files of an unfinished folder, so that other machines see them. Does nothing for a folder store."""
        if self.mirror:
            for file in files:
                self.mirror.upload_file(file)

    def sync(self, file: Path) -> Path:
        """Synchronize an append-only file, such as a journal, with the bucket. Does nothing for a folder store."""
        if self.mirror:
            self.mirror.sync(file)
        return file

    def available(self, file: Path) -> bool:
        """Whether a file is here or can be downloaded from the bucket."""
        return file.is_file() or bool(self.mirror and self.mirror.download_file(file))

    def lock(self, kind: str, id: str, *, wait: bool = True, uses: Sequence[str] = ()) -> AbstractContextManager[None]:
        """Hold the lock on making this artifact. The lock ends with the process, even if the process is killed.

        Args:
            kind, id: the artifact's.
            wait: whether to wait for the process that holds the lock.
            uses: ids of the artifacts that must not be deleted meanwhile (see `users`).

        Raises:
            UsageError: another process holds the lock and `wait` is false; the message names the process.
        """
        return self._locks.hold(kind, id, wait=wait, uses=uses)

    def holder(self, kind: str, id: str) -> str:
        """The process that makes an artifact now, such as `123 on host`; empty if there is none."""
        return self._locks.holder(kind, id)

    def users(self, id: str) -> list[tuple[str, str]]:
        """What processes make now from an artifact: (`<kind>-<id>`, process), such as (`runs-a-1`, `123 on host`)."""
        return self._locks.users(id)


@dataclass
class Staged:
    """A folder under construction."""

    store: Store
    kind: str
    id: str
    name: str
    path: Path

    def commit(self, *, parents: list[str] | None = None, meta: dict[str, Any] | None = None) -> Artifact:
        """Make the folder the artifact, atomically. If the artifact exists already, return that one."""
        manifest = describe(self.path, self.kind, self.id, name=self.name, parents=parents, meta=meta)
        final = self.store.folder(self.kind, self.id)
        if bucket := self.store.mirror:
            if existing := self.store.get(self.kind, self.id):
                return existing
            bucket.upload_folder(self.path, final, manifest)
            shutil.rmtree(final, ignore_errors=True)  # an old copy, if another machine has deleted the artifact
        write_atomically(self.path / MANIFEST, json.dumps(manifest, indent=1))
        try:
            os.rename(self.path, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if existing := self.store.get(self.kind, self.id):
                return existing
            shutil.rmtree(final)  # a folder without a manifest does not exist
            os.rename(self.path, final)
        sync_folder(final.parent)
        return self.store._artifact(self.kind, self.id, manifest)


