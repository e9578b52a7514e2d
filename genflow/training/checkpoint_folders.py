"""The checkpoints of a run: folders that exist whole or not at all, on a disk or in a bucket.

    checkpoints/step_00001000/  weights.safetensors  ema.safetensors  optimizer.safetensors  state.json  manifest.json

`checkpoint` and `sharded_checkpoint` write and read the files of one checkpoint.

A checkpoint exists once its folder does: it is written to a temporary folder, fsynced, and renamed (see `store`). In a
bucket it exists once it is uploaded, and training continues only then.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genflow.errors import DataError
from genflow.storage import mirror
from genflow.storage.files import (
    REPLACED,
    explain_disk_errors,
    replace_folder,
    sync_folder,
    temporary_ending,
    write_atomically,
)  # fmt: skip
from genflow.storage.manifest import describe, manifest_of, read_manifest, verify
from genflow.storage.store import MANIFEST, Artifact

FOLDER = "checkpoints"
LOOKS = 10  # one a second: how often a worker looks for the checkpoint of another one
Files = dict[str, Any]  # {name: {"size": ..., "sha256": ...}}


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: of the checkpoints.
        keep: how many of the newest to keep.
        before: called before a checkpoint is saved, by the worker that commits it.
    """

    def __init__(self, folder: Path, keep: int = 2, before: Callable[[], None] = lambda: None) -> None:
        self.folder, self.keep, self._before = folder, keep, before

    def steps(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.glob("step_*") if ".tmp-" not in p.name and (p / MANIFEST).is_file())

    def newest(self) -> Path | None:
        """The newest checkpoint of an unfinished run whose files match its manifest; a corrupt one is skipped.

        Training then repeats the steps after it. A finished run has one result: see `of_run`.
        """
        if (bucket := self._mirror()) and not (self.folder.parent / MANIFEST).is_file():  # else it is all here
            return bucket.fetch_newest(self.folder, "step_")
        for path in reversed(self.steps()):
            with contextlib.suppress(DataError):
                if manifest := read_manifest(path):
                    verify(path, manifest)
                    return path
        return None

    def open(self, name: str) -> Path | None:
        """The checkpoint of this name; None if this machine does not see it.

        Raises:
            DataError: its files differ from its manifest.
        """
        path, bucket = self.folder / name, self._mirror()
        for attempt in range(LOOKS):  # a network disk shows new files with a delay
            if attempt:
                time.sleep(1)
            if manifest := bucket.manifest(path) if bucket else read_manifest(path):
                if bucket:
                    return bucket.fetch_folder(path, manifest)
                verify(path, manifest)
                return path
        return None

    def _mirror(self) -> mirror.BucketMirror | None:
        return mirror.containing(self.folder)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Commit the files that `write(folder)` writes, then delete the oldest checkpoints.

        A checkpoint of the same step, which an attempt before a divergence may have left, is replaced.
        """
        self._before()
        path = self.folder / f"step_{step:08d}"
        attempt = path.with_name(f"{path.name}{temporary_ending()}")
        with explain_disk_errors(path):
            attempt.mkdir(parents=True)
            try:
                write(attempt)
                manifest = describe(attempt, "checkpoints", path.name)
                self._rename(attempt, manifest)
            finally:
                shutil.rmtree(attempt, ignore_errors=True)
        if bucket := self._mirror():
            bucket.upload_folder(path, path, manifest, exact=True)
        self._delete_old(path.name)

    # --- One checkpoint by several workers: one begins it, each adds files, and the first commits them

    def begin(self, step: int) -> str:
        """Begin a checkpoint to which several workers add files; return the name of the attempt."""
        self._before()
        name = f"step_{step:08d}"
        if bucket := self._mirror():
            bucket.delete_folder(self.folder / name)  # of an attempt before a divergence
        return f"{name}{temporary_ending()}"

    def folder_of(self, attempt: str) -> Path:
        """The folder of an attempt on this machine, into which this worker writes its files."""
        folder = self.folder / attempt
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add(self, attempt: str, names: list[str]) -> Files:
        """The sizes and hashes of this worker's files, once they are on the disk, or in the bucket."""
        folder, path = self.folder / attempt, self.folder / _final(attempt)
        with explain_disk_errors(path):
            files = describe(folder, "checkpoints", path.name, only=names.__contains__)["files"]
        if bucket := self._mirror():
            bucket.upload_files(folder, path, names)
        return dict(files)

    def commit(self, attempt: str, files: Files) -> None:
        """Give the attempt's files, which all workers added, the name of a checkpoint; delete the oldest checkpoints.

        Args:
            attempt: the result of `begin`.
            files: of all workers.

        Raises:
            DataError: this worker does not see the file of another one.
        """
        folder, path = self.folder / attempt, self.folder / _final(attempt)
        manifest = manifest_of(files, "checkpoints", path.name)
        bucket = self._mirror()
        with explain_disk_errors(path):
            if bucket is None:
                _require_sizes(folder, files)
                self._rename(folder, manifest)
            else:
                bucket.publish(path, manifest)
                if {file.name for file in folder.iterdir()} == files.keys():
                    self._rename(folder, manifest)  # all workers are on this machine
        self.abandon(attempt)
        self._delete_old(path.name)

    def abandon(self, attempt: str = "step_*.tmp-*") -> None:
        """Delete an attempt's files on this machine; by default those of all attempts, before a training begins."""
        for torn in list(self.folder.glob(attempt)):
            if REPLACED not in torn.name:
                shutil.rmtree(torn, ignore_errors=True)

    def _rename(self, attempt: Path, manifest: dict[str, Any]) -> None:
        write_atomically(attempt / MANIFEST, json.dumps(manifest))
        replace_folder(attempt, self.folder / manifest["id"])
        sync_folder(self.folder)

    def _delete_old(self, newest: str) -> None:
        """Delete the oldest checkpoints, in a bucket those that are older than the newest."""
        if bucket := self._mirror():
            older = sorted(name for name in bucket.names(bucket.key(self.folder)) if name < newest)
            for name in older[: 1 - self.keep or None]:
                bucket.delete_folder(self.folder / name)
        for old in self.steps()[: -self.keep]:
            # half of a checkpoint must not have its name, or the run's manifest would list it
            os.rename(old, old.with_name(f"{old.name}{temporary_ending()}"))
        self.tidy()

    def tidy(self) -> None:
        """Delete what killed processes left. Only the process that trains the run may call this."""
        for torn in list(self.folder.glob("step_*.tmp-*")):
            name = torn.name.partition(".tmp-")[0]
            if REPLACED in torn.name and not (self.folder / name).exists():
                os.rename(torn, self.folder / name)  # killed before the new checkpoint had the name
            else:
                shutil.rmtree(torn, ignore_errors=True)
        for path in list(self.folder.glob("step_*")):
            if not is_complete(path):  # half-deleted
                shutil.rmtree(path, ignore_errors=True)


def _final(attempt: str) -> str:
    """The name of the checkpoint that an attempt becomes."""
    return attempt.partition(".tmp-")[0]


def _require_sizes(folder: Path, files: Files) -> None:
    """Check that the files which other workers wrote are in this worker's view of the folder, too."""
    for name, facts in files.items():
        file = folder / name
        for attempt in range(LOOKS):  # a network disk shows new files with a delay
            if attempt:
                time.sleep(1)
            if file.is_file() and file.stat().st_size == facts["size"]:
                break
        else:
            raise DataError(f"{file}, which another worker wrote, is not there", "every node must see the same store")


def identity(folder: Path) -> str:
    """A short hash of a checkpoint's files, by which workers compare what they see."""
    manifest = read_manifest(folder)
    content: Any = manifest["files"] if manifest else sorted(file.name for file in folder.iterdir())
    return hashlib.sha256(json.dumps([folder.name, content], sort_keys=True).encode()).hexdigest()[:16]


def is_complete(folder: Path) -> bool:
    """Whether a folder has a manifest and every file of it."""
    manifest = read_manifest(folder)
    return manifest is not None and all((folder / name).is_file() for name in manifest["files"])


def of_run(run: Artifact) -> Path:
    """The newest checkpoint of a finished run, after each of its files was compared with the run's manifest.

    Raises:
        DataError: a file is missing or differs from the manifest. An older checkpoint is another result, so it is
            never used in its place.
    """
    names = run.files(f"{FOLDER}/step_*/*")
    manifest = f"{run.folder / MANIFEST}"
    cure = f"rm {manifest}, then run the same genflow train again: it resumes from the newest intact checkpoint"
    if not names:
        raise DataError(f"{run.folder / FOLDER} is missing: run {run.id} has no checkpoint", cure)
    newest = max(name.split("/")[1] for name in names)
    try:
        files = [run.file(name) for name in names if name.split("/")[1] == newest]
    except DataError as error:
        raise DataError(f"run {run.id}: {error.message}", error.hint if run.url else cure) from error
    return files[0].parent
