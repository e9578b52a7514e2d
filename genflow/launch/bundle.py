"""The parcel: what travels to a cluster, laid out as the repository is.

    genflow/  jobs/  pipelines/  recipe.yaml

It is the same from a checkout and from a wheel, byte by byte, and it stays in the store as the record of what was
sent. Third-party packages are the cluster's own: docs/decisions/0003-the-parcel.md.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from genflow.errors import ResourceError
from genflow.recipe.files import dump
from genflow.storage.files import clear_disk_errors
from genflow.storage.store import Store
from genflow.system import source_hash
from genflow.system.source_hash import digest

Document = dict[str, Any]

SOURCES = ("genflow", "jobs", "pipelines")  # a pipeline composes its stages from presets where it runs
RECIPE = "recipe.yaml"
MAX_BYTES = 50_000_000  # Ray's dashboard takes 100 MiB; genflow itself is 1 MB


def identity(document: Document) -> str:
    """The content address of a parcel."""
    return digest({"document": document, "code": source_hash.fingerprint(*SOURCES)}, 16)


def describe_size() -> str:
    """How much is uploaded, with its largest files, in words.

    Raises:
        ResourceError: it is too large for Ray; the largest files are named.
    """
    sizes = {name: file.stat().st_size for name, file in _files()}
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:3]
    shown = ", ".join(f"{name} ({_size(sizes[name])})" for name in largest)
    whole = sum(sizes.values())
    if whole > MAX_BYTES:
        raise ResourceError(
            f"the parcel has {_size(whole)}, and Ray takes 100 MB; the largest files: {shown}",
            f"move data out of {source_hash.PACKAGE} and {source_hash.resources_dir() / 'jobs'}",
        )
    return f"{_size(whole)}; the largest files: {shown}"


def _files() -> list[tuple[str, Path]]:
    return [pair for room in SOURCES for pair in source_hash.sources(room)]


def _size(bytes: int) -> str:
    return f"{bytes / 1e6:.1f} MB" if bytes >= 1e5 else f"{bytes / 1e3:.0f} kB"


def write(document: Document, into: Path) -> Path:
    """Write a job's parcel into a folder.

    Args:
        document: what the job is told.
        into: the folder, empty or absent.

    Raises:
        ResourceError: it is too large for Ray; the largest files are named.
    """
    describe_size()
    for name, file in _files():
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    (into / RECIPE).write_text(dump(document), encoding="utf-8")
    return into


def save(document: Document, store: Store, name: str) -> Path:
    """Lay a parcel out in the store, where it stays: `<store>/parcels/<name>`.

    Raises:
        ResourceError: from `lay_out`, or the disk is full.
        SetupError: the store cannot be written.
    """
    final = store.root / "parcels" / name
    with clear_disk_errors(final):
        if final.is_dir():  # named by its content, and renamed when it was whole
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        attempt = Path(tempfile.mkdtemp(prefix=f"{name}.tmp-", dir=final.parent))
        try:
            write(document, attempt)
            attempt.chmod(0o755)
            try:
                os.rename(attempt, final)
            except OSError:
                if not final.is_dir():  # else another command was first
                    raise
        finally:
            shutil.rmtree(attempt, ignore_errors=True)
    return final
