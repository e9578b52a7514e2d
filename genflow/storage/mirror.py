"""A store in a bucket, as this machine works with it: a folder that mirrors what it needs, each file verified.

    $GENFLOW_CACHE, else ~/.cache/genflow
      <bucket>-<digest>/          laid out as a store's folder, and as the bucket is
        genflow-mirror.json       which bucket it mirrors
        datasets/ runs/ ...       what was made here, or was needed here
        manifests/<kind>/         of what is in the bucket, so that a list is cheap

The bucket is the truth. What is made here is sent file by file, its manifest last; so a reader sees the whole or
nothing, and what a killed writer left is not seen. What is needed is brought, each file compared with the manifest's
SHA-256 before it gets its name. A file that turns out corrupt here is brought again.

What is only ever appended to (a journal, a search's record) is levelled: the longer of the two copies wins, where one
begins with the other; the bucket's, where they differ.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from genflow.errors import DataError, SetupError
from genflow.storage.s3 import Bucket, ObjectVersion, endpoint

MARKER, MANIFEST = "genflow-mirror.json", "manifest.json"
PARALLEL_TRANSFERS = 8  # transfers
Manifest = dict[str, Any]


def for_url(url: str) -> "BucketMirror":
    """The mirror of the store at `s3://bucket/prefix`."""
    bucket, server = Bucket(url), endpoint()
    cache = Path(os.environ.get("GENFLOW_CACHE") or Path.home() / ".cache" / "genflow").expanduser().absolute()
    root = cache / f"{bucket.name}-{hashlib.sha256(f'{server} {bucket.url}'.encode()).hexdigest()[:10]}"
    return _open(bucket.url, server, root)


@functools.lru_cache(maxsize=8)
def _open(url: str, server: str, root: Path) -> "BucketMirror":
    bucket = Bucket(url)
    bucket.check()
    if not (root / MARKER).is_file():
        try:
            _replace_file(root / MARKER, json.dumps({"url": url, "endpoint": server}).encode())
        except OSError as error:
            raise SetupError(f"cannot write the cache {root}: {error.strerror}",
                             "set GENFLOW_CACHE to a folder you may write") from error
    return BucketMirror(bucket, root)


def containing(path: Path) -> "BucketMirror | None":
    """The mirror that a path lies in; None for a folder that is nobody's mirror."""
    root = next((folder for folder in (path, *path.parents) if (folder / MARKER).is_file()), None)
    if root is None:
        return None
    document = json.loads((root / MARKER).read_text())
    if document["endpoint"] != endpoint():
        raise SetupError(f"{root} mirrors {document['url']} at {document['endpoint'] or 'Amazon S3'}, "
                         f"and AWS_ENDPOINT_URL says {endpoint() or 'Amazon S3'}", "set it to the same")
    return _open(document["url"], document["endpoint"], root)


class BucketMirror:
    """A bucket and the folder that mirrors it.

    Args:
        bucket: the truth.
        root: the folder.
    """

    def __init__(self, bucket: Bucket, root: Path) -> None:
        self.bucket, self.root, self.url = bucket, root, bucket.url
        # by key: the object and the local size when both copies were last the same
        self._synced: dict[str, tuple[ObjectVersion | None, int]] = {}

    def key(self, path: Path) -> str:
        """What a file or folder of the mirror is called in the bucket."""
        return path.relative_to(self.root).as_posix()

    # --- Artifacts: folders with a manifest

    def names(self, kind: str) -> list[str]:
        """What the bucket has of a kind, finished or not."""
        return sorted(name for name, known in self.bucket.list(kind).items() if known is None and ".tmp-" not in name)

    def manifest(self, folder: Path) -> Manifest | None:
        """The bucket's manifest of a folder; None: it does not exist."""
        key, kept = f"{self.key(folder)}/{MANIFEST}", self._cached_manifest_path(folder)
        known = self.bucket.version(key) if kept else None
        if kept and known is None:
            return None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads(kept.read_text()) if kept else {}
            if tuple(document["known"]) == known:
                return dict(document["manifest"])
        try:
            manifest = json.loads(self.bucket.read(key) or b"null")
        except ValueError:
            return None
        if not isinstance(manifest, dict) or "files" not in manifest:
            return None
        if kept:
            _replace_file(kept, json.dumps({"known": known, "manifest": manifest}).encode())
        return manifest

    def _cached_manifest_path(self, folder: Path) -> Path | None:
        """Where a copy of an artifact's manifest is kept.

        None is of a checkpoint's: it may be made twice in the second that is all that S3 tells of a time.
        """
        kind, *rest = self.key(folder).split("/")
        return self.root / "manifests" / kind / f"{rest[0]}.json" if len(rest) == 1 else None

    def manifests(self, folders: Iterable[Path]) -> list[Manifest | None]:
        """Several at once."""
        with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
            return list(pool.map(self.manifest, folders))

    def upload_folder(self, files: Path, folder: Path, manifest: Manifest) -> None:
        """Make a folder exist in the bucket: its files, and last its manifest.

        Args:
            files: where they lie.
            folder: the folder of the mirror that they are.
            manifest: of them.
        """
        key = self.key(folder)
        there = self.bucket.list(key, deep=True)
        if MANIFEST in there and self.manifest(folder) == manifest:
            return
        if kept := self._cached_manifest_path(folder):
            kept.unlink(missing_ok=True)
        self.bucket.delete(f"{key}/{MANIFEST}")  # else it would speak of other files for a moment
        sealed = self._uploaded_hashes(key, there)
        wanted = [n for n, facts in manifest["files"].items() if sealed.get(n) != facts["sha256"]]
        self._in_parallel(lambda name: self.bucket.upload(files / name, f"{key}/{name}"), wanted)
        self.bucket.write(f"{key}/{MANIFEST}", json.dumps(manifest, indent=1).encode())

    def _uploaded_hashes(self, key: str, there: dict[str, ObjectVersion | None]) -> dict[str, str]:
        """The SHA-256 of files that lie in finished folders of a folder already: a run's checkpoints."""
        found: dict[str, str] = {}
        for name in there:
            inner, _, last = name.rpartition("/")
            if inner and last == MANIFEST:
                manifest = self.manifest(self.root / key / inner) or {"files": {}}
                found |= {f"{inner}/{file}": facts["sha256"] for file, facts in manifest["files"].items()}
        return found

    def fetch_folder(self, folder: Path, manifest: Manifest) -> Path:
        """Make a folder be here, whole and verified.

        Raises:
            DataError: a file of the bucket is not what was committed.
        """
        if _is_complete(folder, manifest):
            return folder
        with self._file_lock(folder):
            if _is_complete(folder, manifest):  # another process of this machine was first
                return folder
            (folder / MANIFEST).unlink(missing_ok=True)
            files = manifest["files"]
            self._in_parallel(lambda name: self.fetch_file(folder / name, files[name]), list(files))
            _replace_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        return folder

    def fetch_file(self, path: Path, facts: dict[str, Any]) -> None:
        """Make a file be here, whole.

        Args:
            path: in the mirror.
            facts: its size and sha256.

        Raises:
            DataError: the bucket has another one, or none.
        """
        if is_intact(path, facts):
            return
        attempt = _temporary_path(path)
        try:
            for _ in range(2):  # a broken transfer is mended by another; a broken object is not
                got = self.bucket.download(self.key(path), attempt)
                if got == facts["sha256"]:
                    os.replace(attempt, path)
                    return
        finally:
            attempt.unlink(missing_ok=True)
        what = "is missing" if got is None else "is corrupt: it differs from what was committed"
        where = f"{self.url}/{self.key(path)}"
        artifact = "/".join(self.key(path).split("/")[:2])
        raise DataError(f"{where} {what}", f"aws s3 rm --recursive {self.url}/{artifact}, and make it again")

    def delete_folder(self, folder: Path) -> None:
        """Delete a folder from the bucket: its manifest first, so that it stops existing at once."""
        if kept := self._cached_manifest_path(folder):
            kept.unlink(missing_ok=True)
        self.bucket.delete(f"{self.key(folder)}/{MANIFEST}")
        self.bucket.delete_all(self.key(folder))

    # --- Single files, and folders that grow

    def upload_file(self, path: Path) -> None:
        """Send one small file that is replaced as a whole."""
        self.bucket.write(self.key(path), path.read_bytes())

    def download_file(self, path: Path) -> bool:
        """Bring one file that no manifest speaks of; whether the bucket has it."""
        attempt = _temporary_path(path)
        try:
            if self.bucket.download(self.key(path), attempt) is None:
                return False
            os.replace(attempt, path)
            return True
        finally:
            attempt.unlink(missing_ok=True)

    def download_missing(self, folder: Path) -> None:
        """Bring what the bucket has of a folder that is not finished, and this machine has not."""
        there = self.bucket.list(self.key(folder), deep=True)
        files = {name: known for name, known in there.items() if known and not name.endswith("/")}
        lacking = [n for n, known in files.items() if n != MANIFEST and not _has_size(folder / n, known[0])]
        self._in_parallel(lambda name: self.download_file(folder / name), lacking)

    def fetch_newest(self, folder: Path, prefix: str) -> Path | None:
        """Bring the newest finished folder of a row, such as a run's checkpoints; None if there is none.

        One that is corrupt in the bucket is passed over. What this machine has and the bucket has not does not count.
        """
        names = [n for n in self.bucket.list(self.key(folder)) if n.startswith(prefix) and ".tmp-" not in n]
        for name in sorted(names, reverse=True):
            if manifest := self.manifest(folder / name):
                with contextlib.suppress(DataError):
                    path = self.fetch_folder(folder / name, manifest)
                    for file, facts in manifest["files"].items():
                        self.fetch_file(path / file, facts)  # unless it is whole
                    return path
        return None

    def sync(self, path: Path) -> int:
        """Bring both copies of a file that is only appended to up to the longer one; its size in bytes.

        This end keeps its inode, because a process may have it open.
        """
        with self._file_lock(path):
            key, known = self.key(path), self.bucket.version(self.key(path))
            ours = path.read_bytes() if path.is_file() else b""
            if (known, len(ours)) == self._synced.get(key):
                return len(ours)
            same = known is not None and self._synced.get(key, (None, 0))[0] == known  # it is what ours began with
            theirs = ours[: known[0]] if known and same else (self.bucket.read(key) or b"" if known else b"")
            if ours.startswith(theirs):
                if len(ours) > len(theirs) or known is None:
                    self.bucket.write(key, ours)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "ab") as file:
                    if not theirs.startswith(ours):
                        file.truncate(0)
                        ours = b""
                    file.write(theirs[len(ours) :])
                ours = theirs
            self._synced[key] = (self.bucket.version(key), len(ours))
            return len(ours)

    def sync_all(self, folder: Path) -> None:
        """Level every file that the bucket has in a folder."""
        for name, known in self.bucket.list(self.key(folder)).items():
            if known and not _has_size(folder / name, known[0]):
                self.sync(folder / name)

    @contextlib.contextmanager
    def _file_lock(self, path: Path) -> Iterator[None]:
        """No other process of this machine does the same at this moment."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{self.key(path).replace('/', '~')}.mirror", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _in_parallel(self, do: Callable[[str], Any], names: list[str]) -> None:
        with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
            for _ in pool.map(do, names):
                pass


def is_intact(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a file is what a manifest says of it."""
    if not _has_size(path, facts.get("size", -1)):
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == facts.get("sha256")


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _is_complete(folder: Path, manifest: Manifest) -> bool:
    """Whether a folder is here, by its manifest, which was written last; its bytes are verified where they are read."""
    try:
        return bool(json.loads((folder / MANIFEST).read_text()) == manifest)
    except (OSError, ValueError):
        return False


def _temporary_path(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{time.monotonic_ns() & 0xFFFFFF:x}")


def _replace_file(path: Path, content: bytes) -> None:
    attempt = _temporary_path(path)
    attempt.write_bytes(content)
    os.replace(attempt, path)
