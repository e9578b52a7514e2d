"""The mirror: a local folder with the parts of a store in a bucket that this machine needs, each file verified.

    $GENFLOW_CACHE, else ~/.cache/genflow
      <bucket>-<digest>/          same layout as a store in a folder, and as the bucket
        genflow-mirror.json       names the bucket that this folder mirrors
        datasets/ runs/ ...       artifacts that this machine made or used
        manifests/<kind>/         copies of the bucket's manifests, so that listing artifacts is cheap

The bucket is the truth. Files are uploaded one by one and the manifest last: a reader sees a whole artifact or none;
files that a killed writer uploaded are not visible. A downloaded file gets its name after its SHA-256 was compared with
the manifest. A local file that is corrupt is downloaded again.

Append-only files (a journal, a search's log) are synchronized: if one copy starts with the whole other copy, both
become the longer one; if the copies differ, both become the bucket's.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from genflow.errors import DataError, SetupError, UsageError
from genflow.storage.files import is_intact
from genflow.storage.s3 import Bucket, ObjectVersion, endpoint
from genflow.system.environment import cache_folder

MARKER, MANIFEST, CHECKSUM = "genflow-mirror.json", "manifest.json", "checksum"
OLD_KEYS = {"schema", "id", "name", "created", "genflow", "parents", "meta", "files"}  # of one without a checksum
PARALLEL_TRANSFERS = 8
Manifest = dict[str, Any]


def checksum(document: Any) -> str:
    """The SHA-256 of a JSON document in canonical form; a manifest's is computed without its own key `checksum`."""
    plain = json.loads(json.dumps(document))
    if isinstance(plain, dict):
        plain.pop(CHECKSUM, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def problem_of(manifest: Any) -> str:
    """Why a document is not a valid manifest; empty if it is one."""
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return "it is not a manifest"
    if CHECKSUM not in manifest:
        return "its checksum is missing" if set(manifest) - OLD_KEYS else ""
    return "" if manifest[CHECKSUM] == checksum(manifest) else "it differs from its checksum"


def for_url(url: str) -> "BucketMirror":
    """The mirror of the store at `s3://bucket/prefix`."""
    bucket, server = Bucket(url), endpoint()
    return _open(bucket.url, server, cache_folder() / _folder_name(bucket.url, server))


def _folder_name(url: str, server: str) -> str:
    return f"{Bucket(url).name}-{hashlib.sha256(f'{server} {url}'.encode()).hexdigest()[:10]}"


@functools.lru_cache(maxsize=8)
def _open(url: str, server: str, root: Path) -> "BucketMirror":
    bucket = Bucket(url)
    bucket.check()
    marker = json.dumps({"url": url, "endpoint": server}).encode()
    if not (root / MARKER).is_file() or (root / MARKER).read_bytes() != marker:
        try:
            _replace_file(root / MARKER, marker)
        except OSError as error:
            raise SetupError(f"cannot write the cache {root}: {error.strerror}",
                             "set GENFLOW_CACHE to a folder that you can write to") from error
    return BucketMirror(bucket, root)


def containing(path: Path) -> "BucketMirror | None":
    """The mirror that contains a path; None if no mirror does.

    Raises:
        SetupError: AWS_ENDPOINT_URL is not the server that the mirror was made for.
        DataError: the file that names the bucket is damaged.
    """
    root = next((folder for folder in (path, *path.parents) if (folder / MARKER).is_file()), None)
    if root is None:
        return None
    try:
        document = json.loads((root / MARKER).read_bytes())
        intact = root.name == _folder_name(document["url"], document["endpoint"])
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        intact = False
    if not intact:
        raise DataError(f"{root / MARKER} is corrupt: it does not name the bucket of this folder",
                        "export GENFLOW_STORE=s3://BUCKET/PREFIX; the next command writes the file again")
    if document["endpoint"] != endpoint():
        raise SetupError(f"{root} mirrors {document['url']} at {document['endpoint'] or 'Amazon S3'}, "
                         f"but AWS_ENDPOINT_URL is {endpoint() or 'Amazon S3'}", "set AWS_ENDPOINT_URL to the first")
    return _open(document["url"], document["endpoint"], root)


class BucketMirror:
    """A bucket and the folder that mirrors it.

    Args:
        bucket: the bucket, which is the truth.
        root: the local folder.
    """

    def __init__(self, bucket: Bucket, root: Path) -> None:
        self.bucket, self.root, self.url = bucket, root, bucket.url
        # by key: the object and the local size when both copies were last the same
        self._synced: dict[str, tuple[ObjectVersion | None, int]] = {}

    def key(self, path: Path) -> str:
        """The key in the bucket of a file or folder of the mirror."""
        return path.relative_to(self.root).as_posix()

    # --- Artifacts: folders with a manifest

    def names(self, kind: str) -> list[str]:
        """The ids of a kind in the bucket, finished or not."""
        return sorted(name for name, info in self.bucket.list(kind).items() if info is None and ".tmp-" not in name)

    def manifest(self, folder: Path) -> Manifest | None:
        """The bucket's manifest of a folder; None if the artifact does not exist.

        A local copy that is damaged is replaced by the bucket's manifest.

        Raises:
            DataError: the manifest is damaged in the bucket.
        """
        key, cached = f"{self.key(folder)}/{MANIFEST}", self._cached_manifest_path(folder)
        version = self.bucket.version(key) if cached else None
        if cached and version is None:
            return None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads(cached.read_bytes()) if cached else {}
            manifest = document["manifest"]
            if tuple(document["known"]) == version and document[CHECKSUM] == checksum(manifest):
                return dict(manifest)
        return self._read_manifest(folder, version)

    def _read_manifest(self, folder: Path, version: ObjectVersion | None) -> Manifest | None:
        """The manifest as the bucket has it now; a copy is cached."""
        key, cached = f"{self.key(folder)}/{MANIFEST}", self._cached_manifest_path(folder)
        for _ in range(2):  # repeating helps after a broken transfer
            if (content := self.bucket.read(key)) is None:
                return None
            try:
                manifest = json.loads(content)
            except (ValueError, RecursionError):
                manifest = None
            if not (problem := problem_of(manifest)):
                break
        else:
            raise DataError(f"{self.url}/{key} is corrupt: {problem}",
                            f"aws s3 rm {self.url}/{key}, then run the command that made it again")
        if cached:
            copy = {"known": version, "manifest": manifest, CHECKSUM: checksum(manifest)}
            _replace_file(cached, json.dumps(copy).encode())
        return dict(manifest)

    def _cached_manifest_path(self, folder: Path) -> Path | None:
        """Where a copy of an artifact's manifest is cached; None for a checkpoint, whose manifest is not cached.

        A checkpoint may be written twice within a second, and S3's times have a resolution of one second.
        """
        kind, *rest = self.key(folder).split("/")
        return self.root / "manifests" / kind / f"{rest[0]}.json" if len(rest) == 1 else None

    def upload_folder(self, files: Path, folder: Path, manifest: Manifest, *, exact: bool = False) -> None:
        """Upload a folder: its files, and last its manifest.

        Args:
            files: the local folder that holds the files.
            folder: the folder of the mirror that they become.
            manifest: the manifest of the files.
            exact: whether to delete other files of the folder from the bucket, which killed writers left.
        """
        key = self.key(folder)
        listed = self.bucket.list(key, deep=True)
        with contextlib.suppress(DataError):  # a damaged manifest is replaced
            if MANIFEST in listed and self.manifest(folder) == manifest:
                return
        if cached := self._cached_manifest_path(folder):
            cached.unlink(missing_ok=True)
        self.bucket.delete(f"{key}/{MANIFEST}")  # the old manifest does not describe the files during the upload
        uploaded = self._uploaded_hashes(key, listed)
        wanted = [n for n, facts in manifest["files"].items() if uploaded.get(n) != facts["sha256"]]
        self.upload_files(files, folder, wanted)
        self.publish(folder, manifest)
        if exact:
            left = [name for name, info in listed.items() if info and name not in (*manifest["files"], MANIFEST)]
            self._in_parallel(lambda name: self.bucket.delete(f"{key}/{name}"), left)

    def upload_files(self, files: Path, folder: Path, names: list[str]) -> None:
        """Upload some files of a folder, which are not visible before its manifest; see `upload_folder`."""
        key = self.key(folder)
        self._in_parallel(lambda name: self.bucket.upload(files / name, f"{key}/{name}"), names)

    def publish(self, folder: Path, manifest: Manifest) -> None:
        """Upload the manifest of a folder whose files are in the bucket."""
        self.bucket.write(f"{self.key(folder)}/{MANIFEST}", json.dumps(manifest, indent=1).encode())

    def _uploaded_hashes(self, key: str, listed: dict[str, ObjectVersion | None]) -> dict[str, str]:
        """The SHA-256 of files below a folder that are in a finished subfolder, such as a run's checkpoint."""
        found: dict[str, str] = {}
        for name in listed:
            inner, _, last = name.rpartition("/")
            if inner and last == MANIFEST:
                with contextlib.suppress(DataError):
                    manifest = self.manifest(self.root / key / inner) or {"files": {}}
                    found |= {f"{inner}/{file}": facts["sha256"] for file, facts in manifest["files"].items()}
        return found

    def fetch_folder(self, folder: Path, manifest: Manifest) -> Path:
        """Download a folder, unless it is here, and verify it.

        Raises:
            DataError: a file of the bucket differs from the manifest.
        """
        if _is_complete(folder, manifest):
            return folder
        with self._file_lock(folder):
            if _is_complete(folder, manifest):  # another process of this machine has downloaded it
                return folder
            (folder / MANIFEST).unlink(missing_ok=True)
            files = manifest["files"]
            self._in_parallel(lambda name: self.fetch_file(folder / name, files[name]), list(files))
            _replace_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        return folder

    def fetch_file(self, path: Path, facts: dict[str, Any]) -> None:
        """Download a file, unless an intact copy is here.

        The bucket's manifest is read again before the bucket is blamed: the local copy of the manifest may be damaged.

        Args:
            path: the file in the mirror.
            facts: its size and sha256, from a manifest.

        Raises:
            DataError: the bucket's file is missing or differs.
        """
        if is_intact(path, facts):
            return
        attempt = _temporary_path(path)
        try:
            for _ in range(2):  # repeating helps after a broken transfer, not with a corrupt object
                digest = self.bucket.download(self.key(path), attempt)
                if digest and (digest == facts.get("sha256") or digest == self._hash_in_bucket(path)):
                    os.replace(attempt, path)
                    return
        finally:
            attempt.unlink(missing_ok=True)
        what = "is missing" if digest is None else "is corrupt: it differs from its manifest"
        where = f"{self.url}/{self.key(path)}"
        artifact = "/".join(self.key(path).split("/")[:2])
        hint = f"aws s3 rm --recursive {self.url}/{artifact}, then run the command that made it again"
        raise DataError(f"{where} {what}", hint)

    def _hash_in_bucket(self, path: Path) -> Any:
        """The SHA-256 of a file by the manifest that the bucket has now."""
        kind, id, *inner = self.key(path).split("/")
        if not inner:
            return None
        folder = self.root / kind / id
        manifest = self._read_manifest(folder, self.bucket.version(f"{kind}/{id}/{MANIFEST}"))
        return manifest["files"].get("/".join(inner), {}).get("sha256") if manifest else None

    def delete_folder(self, folder: Path) -> None:
        """Delete a folder from the bucket: the manifest first, so that the artifact stops existing at once."""
        if cached := self._cached_manifest_path(folder):
            cached.unlink(missing_ok=True)
        self.bucket.delete(f"{self.key(folder)}/{MANIFEST}")
        self.bucket.delete_all(self.key(folder))

    # --- Single files, and folders that grow

    def upload_file(self, path: Path) -> None:
        """Upload one small file that is always replaced as a whole."""
        self.bucket.write(self.key(path), path.read_bytes())

    def download_file(self, path: Path) -> bool:
        """Download one file that is in no manifest. Return whether the bucket has it."""
        attempt = _temporary_path(path)
        try:
            if self.bucket.download(self.key(path), attempt) is None:
                return False
            os.replace(attempt, path)
            return True
        finally:
            attempt.unlink(missing_ok=True)

    def download_missing(self, folder: Path) -> None:
        """Download the files of an unfinished folder that this machine does not have."""
        listed = self.bucket.list(self.key(folder), deep=True)
        files = {name: version for name, version in listed.items() if version and not name.endswith("/")}
        missing = [n for n, version in files.items() if n != MANIFEST and not _has_size(folder / n, version[0])]
        self._in_parallel(lambda name: self.download_file(folder / name), missing)

    def fetch_newest(self, folder: Path, prefix: str) -> Path | None:
        """Download the newest finished folder of a numbered series, such as a run's checkpoints; None if there is none.

        Folders that are corrupt in the bucket are skipped. Folders that only this machine has do not count.
        """
        names = [n for n in self.bucket.list(self.key(folder)) if n.startswith(prefix) and ".tmp-" not in n]
        for name in sorted(names, reverse=True):
            if manifest := self.manifest(folder / name):
                with contextlib.suppress(DataError):
                    path = self.fetch_folder(folder / name, manifest)
                    for file, facts in manifest["files"].items():
                        self.fetch_file(path / file, facts)  # does nothing if the file is intact
                    return path
        return None

    def sync(self, path: Path) -> int:
        """Make both copies of an append-only file the same, and return the size in bytes.

        The local file keeps its inode, because a process may have it open.
        """
        with self._file_lock(path):
            key, version = self.key(path), self.bucket.version(self.key(path))
            local = path.read_bytes() if path.is_file() else b""
            if (version, len(local)) == self._synced.get(key):
                return len(local)
            unchanged = version is not None and self._synced.get(key, (None, 0))[0] == version  # a prefix of `local`
            if version is None:
                remote = b""
            else:
                remote = local[: version[0]] if unchanged else self.bucket.read(key) or b""
            if local.startswith(remote):
                if len(local) > len(remote) or version is None:
                    self.bucket.write(key, local)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "ab") as file:
                    if not remote.startswith(local):
                        file.truncate(0)
                        local = b""
                    file.write(remote[len(local) :])
                local = remote
            self._synced[key] = (self.bucket.version(key), len(local))
            return len(local)

    def sync_all(self, folder: Path) -> None:
        """Synchronize every append-only file that the bucket has in a folder."""
        for name, version in self.bucket.list(self.key(folder)).items():
            if version and not _has_size(folder / name, version[0]):
                self.sync(folder / name)

    @contextlib.contextmanager
    def _file_lock(self, path: Path) -> Iterator[None]:
        """Hold a lock on a path against the other processes of this machine."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{self.key(path).replace('/', '~')}.mirror", "a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _in_parallel(self, do: Callable[[str], Any], names: list[str]) -> None:
        with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
            for _ in pool.map(do, names):
                pass


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _is_complete(folder: Path, manifest: Manifest) -> bool:
    """Whether a folder was downloaded completely: its manifest is written last. Bytes are verified on read."""
    try:
        return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8")) == manifest)
    except (OSError, ValueError):
        return False


def _temporary_path(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{time.monotonic_ns() & 0xFFFFFF:x}")


def _replace_file(path: Path, content: bytes) -> None:
    attempt = _temporary_path(path)
    attempt.write_bytes(content)
    os.replace(attempt, path)
