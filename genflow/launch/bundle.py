"""The bundle: the files that a job on a cluster needs, in the same layout as the repository.

    genflow/  jobs/  pipelines/  recipe.yaml

Ray uploads it as the job's `working_dir`. A checkout and a wheel produce the same bytes. The bundle stays in the store
as a record of the job. Third-party packages must be installed on the cluster; see
docs/decisions/0003-how-code-reaches-the-cluster.md.
"""

import os
import shutil
import tempfile
from pathlib import Path

from genflow.errors import ResourceError
from genflow.recipe.files import dump
from genflow.storage.files import explain_disk_errors
from genflow.storage.store import Store
from genflow.system import source_hash
from genflow.system.documents import Json
from genflow.system.source_hash import digest

SOURCES = ("genflow", "jobs", "pipelines")  # pipelines/ has the presets, which a pipeline reads on the cluster
RECIPE = "recipe.yaml"
MAX_BYTES = 50_000_000  # Ray's dashboard accepts 100 MiB; genflow is about 1 MB


def identity(document: Json) -> str:
    """The content address of a bundle: a hash of its document and of the source code."""
    return digest({"document": document, "code": source_hash.fingerprint(*SOURCES)}, 16)


def describe_size() -> str:
    """The size of the upload and its three largest files, as text.

    Raises:
        ResourceError: the upload has more than MAX_BYTES; the message names the largest files.
    """
    sizes = {name: file.stat().st_size for name, file in _files()}
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:3]
    listed = ", ".join(f"{name} ({_size(sizes[name])})" for name in largest)
    total = sum(sizes.values())
    if total > MAX_BYTES:
        raise ResourceError(
            f"the upload of {_size(total)} exceeds the limit of {_size(MAX_BYTES)}; the largest files: {listed}",
            f"move data files out of {source_hash.PACKAGE} and {source_hash.resources_dir() / 'jobs'}",
        )
    return f"{_size(total)}; the largest files: {listed}"


def _files() -> list[tuple[str, Path]]:
    return [pair for folder in SOURCES for pair in source_hash.sources(folder)]


def _size(bytes: int) -> str:
    return f"{bytes / 1e6:.1f} MB" if bytes >= 1e5 else f"{bytes / 1e3:.0f} kB"


def write(document: Json, into: Path) -> Path:
    """Write the bundle of a job to a folder.

    Args:
        document: recipe and inputs of the job.
        into: an empty or missing folder.

    Raises:
        ResourceError: the bundle has more than MAX_BYTES; the message names the largest files.
    """
    describe_size()
    for name, file in _files():
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    (into / RECIPE).write_text(dump(document), encoding="utf-8")
    return into


def save(document: Json, store: Store, name: str) -> Path:
    """Save the bundle of a job in the store, as `<store>/parcels/<name>`.

    Raises:
        ResourceError: the bundle has more than MAX_BYTES, or the disk is full.
        SetupError: the store cannot be written.
    """
    final = store.root / "parcels" / name
    with explain_disk_errors(final):
        if final.is_dir():  # complete, because it was renamed after the last write
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{name}.tmp-", dir=final.parent))
        try:
            write(document, partial)
            partial.chmod(0o755)
            try:
                os.rename(partial, final)
            except OSError:
                if not final.is_dir():  # otherwise another command has just saved the same bundle
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final
