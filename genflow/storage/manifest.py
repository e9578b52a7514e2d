"""The manifest lists an artifact's files with sizes and hashes. An artifact exists once its manifest is written.

A manifest has a checksum of itself. A folder whose manifest fails its checksum is damaged; one without a manifest is
unfinished. Manifests of genflow 0.2 and older have no checksum, and no keys other than `OLD_KEYS`.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from genflow import __version__
from genflow.errors import DataError
from genflow.storage import mirror
from genflow.storage.files import is_intact, sync_folder
from genflow.storage.mirror import CHECKSUM, MANIFEST, checksum, problem_of

_warned: set[str] = set()  # messages that this process has printed


def describe(path: Path, kind: str, id: str, *, name: str = "", parents: list[str] | None = None,
             meta: dict[str, Any] | None = None, only: Callable[[str], bool] | None = None) -> dict[str, Any]:
    """The manifest of the files in `path`, after an fsync of the files and their folders.

    Args:
        path: the folder.
        kind, id, name: the artifact's.
        parents: ids of the artifacts that this one was made from.
        meta: a JSON document about the artifact.
        only: selects files by their relative path; None: all files.
    """
    files = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p != path / MANIFEST):
        relative = file.relative_to(path).as_posix()
        if only is None or only(relative):
            files[relative] = {"size": file.stat().st_size, "sha256": sync_and_hash(file)}
    for folder in sorted({(path / name).parent for name in files}):
        sync_folder(folder)
    return manifest_of(files, kind, id, name=name, parents=parents, meta=meta)


def manifest_of(files: dict[str, Any], kind: str, id: str, *, name: str = "", parents: list[str] | None = None,
                meta: dict[str, Any] | None = None) -> dict[str, Any]:
    """The manifest of files that are on the disk, from their sizes and hashes; see `describe`."""
    manifest = {
        "schema": f"genflow.{kind}/1",
        "id": id,
        "name": name,
        "created": time.time(),
        "genflow": __version__,
        "parents": parents or [],
        "meta": meta or {},
        "files": files,
    }
    return {**manifest, CHECKSUM: checksum(manifest)}


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None if there is none.

    Raises:
        DataError: the manifest is damaged.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path / MANIFEST} cannot be read: {error.strerror}", f"ls -l {path}") from error
    except (ValueError, RecursionError):
        manifest = None
    if problem := problem_of(manifest):
        raise DataError(f"{path / MANIFEST} is corrupt: {problem}",
                        f"rm {path / MANIFEST}, then run the command that made it again")
    return dict(manifest)


def warn(error: DataError) -> None:
    """Print one line on stderr about something damaged that a command skips, once in a process."""
    if error.message not in _warned:
        _warned.add(error.message)
        print(f"warning: skipped: {error.message} (fix: {error.hint})", file=sys.stderr, flush=True)


def verify(path: Path, manifest: dict[str, Any], sizes: Collection[str] = ()) -> None:
    """Compare the files in `path` with the manifest. In the mirror of a bucket, files that differ are downloaded again.

    Args:
        path: the folder.
        manifest: of its files.
        sizes: files of which only the size is compared, and nothing if they are in a bucket.

    Raises:
        DataError: a file is missing or differs, and no bucket has it.
    """
    late = set(sizes)
    for name in manifest["files"]:
        if name not in late:
            verify_file(path, name, manifest)
        elif not mirror.containing(path):
            _verify_size(path / name, manifest["files"][name], f"rm -r {path}, then run the command that made it again")


def _verify_size(file: Path, facts: dict[str, Any], hint: str) -> None:
    try:
        size = file.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing", hint) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", hint) from error
    if size != facts.get("size"):
        raise DataError(f"{file} is corrupt: it differs from its manifest", hint)


def verify_file(path: Path, name: str, manifest: dict[str, Any]) -> Path:
    """Compare one file with the manifest of its folder, and return its path; see `verify`.

    Raises:
        DataError: the file is missing, differs, or is not in the manifest.
    """
    file, facts = path / name, manifest["files"].get(name)
    if facts is None:
        raise DataError(f"{file} is missing: it is not in its manifest",
                        f"rm {path / MANIFEST}, then run the command that made it again")
    if bucket := mirror.containing(path):
        bucket.fetch_file(file, facts)  # does nothing if the file is intact
        return file
    hint = f"rm -r {path}, then run the command that made it again"
    try:
        if not file.is_file():
            raise DataError(f"{file} is missing", hint)
        if not is_intact(file, facts):
            raise DataError(f"{file} is corrupt: it differs from its manifest", hint)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", hint) from error
    return file


def verify_if_listed(file: Path) -> None:
    """Compare a file with the manifest in its folder, if genflow wrote one there that lists it.

    Raises:
        DataError: the file is missing or differs.
    """
    try:
        manifest = read_manifest(file.parent)
    except DataError:  # perhaps another program's file
        return
    if manifest and str(manifest.get("schema")).startswith("genflow.") and file.name in manifest["files"]:
        verify_file(file.parent, file.name, manifest)


def sync_and_hash(path: Path) -> str:
    """Flush a file to the disk (fsync) and return its SHA-256."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
