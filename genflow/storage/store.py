"""The artifact store: a folder of artifacts. An artifact is a folder that exists only once its manifest is written.

    .genflow/
      datasets/<name>-<key>/      Arrow shards, facts.json
      features/<name>-<key>/      the feature extractor's network for one dataset
      runs/<name>-<key>/          recipe.yaml, facts.json, checkpoints/step_00001000/, samples/
      searches/<name>-<key>/      best.yaml, search.json, trials/0007/
      evaluations/<name>-<key>/   metrics.json, sample grids
      reports/<name>-<key>/       report.html
      journals/<run id>.jsonl     the measurements of a run (see `genflow.tracking.journal`)

Commit protocol: files are written into `X.tmp-<attempt>` and fsynced; the manifest (schema, versions, parents, and the
size and SHA-256 of each file) is written last; then the folder is renamed and its parent fsynced. A reader therefore
sees the old state or the new one. A folder without a valid manifest does not exist. None of the file formats detects a
changed byte (a flipped bit in an Arrow file is read as data), so the hashes are checked on read.

A store may also be in a bucket, `s3://bucket/prefix`, with the same layout; `genflow.storage.mirror` keeps a copy on
each machine.
"""

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genflow.errors import SetupError, UsageError
from genflow.storage import mirror
from genflow.storage.files import HOSTNAME, explain_disk_errors, remove_leftovers, sync_folder, write_atomically
from genflow.storage.lock import lease
from genflow.storage.manifest import describe, read_manifest, verify
from genflow.storage.mirror import MANIFEST

KINDS = ("datasets", "features", "runs", "pairs", "searches", "evaluations", "reports")
COMMAND_FOR = {
    "datasets": "genflow prepare SOURCE --name NAME makes one",
    "runs": "genflow train FAMILY --data NAME makes one",
    "pairs": "genflow reflow RUN makes some",
    "searches": "genflow tune FAMILY --data NAME makes one",
    "evaluations": "genflow evaluate RUN makes one",
    "reports": "genflow compare RUN... makes one",
    "features": "genflow evaluate RUN makes one",
}


@dataclass(frozen=True)
class Artifact:
    """A finished folder of the store and its manifest.

    Args:
        kind, id: its place in the store.
        folder: its path on this machine; in a bucket's mirror, the path may not exist yet.
        manifest: its manifest.
        url: the URL of a store in a bucket, whose files are downloaded on first use; empty for a folder.
    """

    kind: str
    id: str
    folder: Path
    manifest: dict[str, Any]
    url: str = ""

    @property
    def path(self) -> Path:
        """The folder on this machine, with all of its files."""
        if not self.url:
            return self.folder
        here = mirror.for_url(self.url)
        return here.fetch_folder(here.root / self.kind / self.id, self.manifest)

    @property
    def name(self) -> str:
        """The name that the user chose."""
        return str(self.manifest.get("name") or self.id.rpartition("-")[0])

    @property
    def meta(self) -> dict[str, Any]:
        """The JSON document that was committed with it."""
        return self.manifest.get("meta", {})

    def file(self, name: str) -> Path:
        """The path on this machine of one of its files."""
        if not self.url or name not in self.manifest["files"]:
            return self.path / name
        here = mirror.for_url(self.url)
        path = here.root / self.kind / self.id / name
        here.fetch_file(path, self.manifest["files"][name])
        return path

    def verify(self) -> "Artifact":
        """Check every file against the manifest.

        Raises:
            DataError: a file is missing or differs from the manifest.
        """
        verify(self.path, self.manifest)
        return self


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
            return
        self.root = Path(text).expanduser().absolute()
        self.url = str(self.root)
        if self.root.exists() and not self.root.is_dir():
            raise SetupError(f"the store {self.root} is a file, not a folder", "set GENFLOW_STORE to a folder")

    def folder(self, kind: str, id: str) -> Path:
        """The artifact's path, whether it exists or not."""
        return self.root / kind / id

    def get(self, kind: str, id: str) -> Artifact | None:
        """The artifact; None if it is not finished."""
        path = self.folder(kind, id)
        manifest = self.mirror.manifest(path) if self.mirror else read_manifest(path)
        return self._artifact(kind, id, manifest) if manifest else None

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
        """The finished artifacts of a kind, oldest first."""
        names = self.names(kind)
        folders = [self.folder(kind, name) for name in names]
        manifests = self.mirror.manifests(folders) if self.mirror else map(read_manifest, folders)
        found = [self._artifact(kind, name, m) for name, m in zip(names, manifests, strict=True) if m]
        return sorted(found, key=lambda a: (a.manifest.get("created", 0), a.id))

    def find(self, kind: str, reference: str) -> Artifact:
        """An artifact by its id, a prefix of it, its name (the newest of that name), or `latest`.

        Raises:
            UsageError: no artifact or several match; the message lists the existing ones.
        """
        every = self.artifacts(kind)
        noun = {"features": "feature extractor", "pairs": "pairs", "searches": "search"}.get(kind, kind[:-1])
        if not reference:
            raise UsageError(f"no {noun} was named", f"genflow {'data' if kind == 'datasets' else kind} ls")
        if reference == "latest" and every:
            return every[-1]
        for match in (
            [a for a in every if a.id == reference],
            [a for a in every if a.name == reference][-1:],
        ):
            if match:
                return match[-1]
        close = [a for a in every if a.id.startswith(reference) or a.id.rpartition("-")[2].startswith(reference)]
        if len(close) == 1:
            return close[0]
        if close:
            raise UsageError(f"{noun} {reference!r} is ambiguous: {', '.join(a.id for a in close)}")
        names = list(dict.fromkeys(a.name for a in reversed(every)))
        known = f"; there are: {', '.join(names[:12])}" if names else f"; the store {self.url} has none"
        raise UsageError(f"no {noun} {reference!r}{known}", COMMAND_FOR[kind])

    @contextmanager
    def stage(self, kind: str, id: str, *, name: str = "") -> Iterator["Staged"]:
        """A temporary folder. `staged.commit(...)` makes it the artifact; without a commit it is deleted at the end."""
        path = self.folder(kind, id)
        attempt = path.with_name(f"{path.name}.tmp-{HOSTNAME}-{os.getpid()}-{time.monotonic_ns() & 0xFFFFFF:x}")
        with explain_disk_errors(path):
            remove_leftovers(path.parent)
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

    def remove(self, artifact: Artifact) -> None:
        """Delete an artifact: the manifest first, so that the artifact stops existing at once."""
        self.delete(artifact.kind, artifact.id)

    def delete(self, kind: str, id: str) -> None:
        """Delete a folder of the store, finished or not."""
        if self.mirror:
            self.mirror.delete_folder(self.folder(kind, id))
        (self.folder(kind, id) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.folder(kind, id), ignore_errors=True)

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

    @contextmanager
    def lock(self, kind: str, id: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock on making this artifact. The lock ends with the process, even if the process is killed.

        Raises:
            UsageError: another process holds the lock and `wait` is false; the message names the process.
        """
        folder = self.root / "locks"
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = open(folder / f"{kind}-{id}.lock", "a+")  # noqa: SIM115  closed below, after unlocking
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                file.seek(0)
                raise UsageError(f"{id} is being made by process {file.read().strip() or 'unknown'}",
                                 "wait for it, or stop that process") from error
            with explain_disk_errors(folder):
                file.seek(0)
                file.truncate()
                file.write(f"{os.getpid()} on {os.uname().nodename}")
                file.flush()
            if self.mirror and kind in KINDS:  # locks of other kinds are for this machine only
                with lease(self.mirror.bucket, f"{kind}-{id}", wait=wait):
                    yield
            else:
                yield


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


