"""The manifest lists an artifact's files with sizes and hashes. An artifact exists once its manifest is written."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genflow import __version__
from genflow.errors import DataError
from genflow.storage import mirror
from genflow.storage.files import sync_folder
from genflow.storage.mirror import MANIFEST


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
    return {
        "schema": f"genflow.{kind}/1",
        "id": id,
        "name": name,
        "created": time.time(),
        "genflow": __version__,
        "parents": parents or [],
        "meta": meta or {},
        "files": files,
    }


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None if it is missing or cannot be read."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def verify(path: Path, manifest: dict[str, Any]) -> None:
    """Compare the files in `path` with the manifest. In the mirror of a bucket, files that differ are downloaded again.

    Raises:
        DataError: a file is missing or differs, and no bucket has it.
    """
    bucket = mirror.containing(path)
    for name, facts in manifest["files"].items():
        file = path / name
        if bucket:
            bucket.fetch_file(file, facts)  # does nothing if the file is intact
            continue
        if not file.is_file():
            raise DataError(f"{file} is missing", f"rm -r {path}, then run the command that made it again")
        if file.stat().st_size != facts.get("size") or hash_file(file) != facts.get("sha256"):
            raise DataError(f"{file} is corrupt: it differs from its manifest",
                            f"rm -r {path}, then run the command that made it again")


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, computed in constant memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_and_hash(path: Path) -> str:
    """Flush a file to the disk (fsync) and return its SHA-256."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
