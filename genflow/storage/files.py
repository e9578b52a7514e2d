"""Files that survive a crash: atomic writes, fsync, removal of leftovers of killed processes, one-line disk errors."""

import ctypes
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genflow.errors import GenflowError, ResourceError, SetupError

REPLACED = ".tmp-replaced"
AT_FDCWD, EXCHANGE = -100, 2  # of renameat2 on Linux; macOS's RENAME_SWAP is 2, too
HOSTNAME = os.uname().nodename  # part of a temporary name: process ids are per machine, and a store may be shared

SETTLED_NS = 100_000_000  # a file changed later than this may change again without another modification time
_hashes: dict[tuple[str, int, int, int], str] = {}  # by path, modification time, size and inode


def is_intact(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a file has the size and the SHA-256 of a manifest. An unchanged file is hashed once in a process."""
    if not path.is_file():
        return False
    found = path.stat()
    if found.st_size != facts.get("size"):
        return False
    key = (str(path), found.st_mtime_ns, found.st_size, found.st_ino)
    if (digest := _hashes.get(key)) is None:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time_ns() - found.st_mtime_ns > SETTLED_NS:
            _hashes[key] = digest
    return digest == facts.get("sha256")


def temporary_ending() -> str:
    """The ending of a temporary name, with which `dead_leftovers` finds it if this process is killed."""
    return f".tmp-{HOSTNAME}-{os.getpid()}-{time.monotonic_ns() & 0xFFFFFF:x}"


def dead_leftovers(folder: Path) -> list[Path]:
    """The temporary files and folders of processes of this machine that no longer run."""
    found = []
    for leftover in folder.glob(f"*.tmp-{HOSTNAME}-*"):
        pid = leftover.name.rpartition(f".tmp-{HOSTNAME}-")[2].partition("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            found.append(leftover)
        except (PermissionError, ValueError):  # alive, and owned by another user; or a name of something else
            continue
    return found


def remove_leftover(path: Path) -> None:
    """Delete a temporary file or folder."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def replace_folder(new: Path, path: Path) -> None:
    """Rename a folder; one that has the name already is deleted, and at every moment one of both has it.

    File systems that cannot exchange two names, such as NFS, have a moment at which neither has the name; the old one
    is then called `<name>.tmp-replaced-<attempt>`.
    """
    if path.exists():
        old = new
        if not _exchange(new, path):
            old = path.with_name(f"{path.name}{REPLACED}{temporary_ending()}")
            os.rename(path, old)
            os.rename(new, path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(new, path)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names atomically; False if the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(a), os.fsencode(b)
    if hasattr(libc, "renameat2"):  # Linux
        return bool(libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], EXCHANGE) == 0)
    if hasattr(libc, "renamex_np"):  # macOS
        return bool(libc.renamex_np(*names, EXCHANGE) == 0)
    return False


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Replace a small file atomically: a reader sees the old content or the new one."""
    with replacing(path) as attempt:
        attempt.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, which is made if it is missing.

    At the end of the block its file is flushed to the disk (fsync) and replaces `path` atomically. If the block raises,
    the temporary file is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt = path.with_name(f".{path.name}{temporary_ending()}")
    try:
        yield attempt
        with open(attempt, "rb") as file:
            os.fsync(file.fileno())
        os.replace(attempt, path)
    except BaseException:
        attempt.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def link_or_copy(source: Path, target: Path) -> Path:
    """Give a finished file a second name, so that it takes no further space; or copy it to another file system."""
    attempt = target.with_name(f".{target.name}{temporary_ending()}")
    try:
        try:
            os.link(source, attempt)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, attempt)
        os.replace(attempt, target)
    finally:
        attempt.unlink(missing_ok=True)
    return target


FULL, UNREADABLE, REFUSED = (27, 28, 122), (5, 116, 117), (1, 13, 20, 30)
"""Numbers of EFBIG, ENOSPC, EDQUOT; of EIO, ESTALE, EUCLEAN; of EPERM, EACCES, ENOTDIR, EROFS."""
TOO_MANY_FILES = (23, 24)  # ENFILE, EMFILE
NUMBER = re.compile(r"(?:os error |\[[Ee]rrno )(\d+)[)\]]")  # in messages of Rust's and Arrow's libraries
SQLITE = {  # in messages of sqlite, which has numbers of its own
    "database or disk is full": 28,
    "disk I/O error": 5,
    "attempt to write a readonly database": 30,
    "unable to open database file": 13,
}


def disk_error(error: BaseException, path: str | Path = "") -> GenflowError | None:
    """One line for an error of the disk, whichever library raised it; None for any other error.

    Args:
        error: the error; its causes are examined too, because MLflow and SQLAlchemy wrap the errors of sqlite.
        path: what the program was writing; empty: the path in the error. Without a path, an error about permissions
            is not explained, because it may come from something else than a file.

    Returns:
        ResourceError: the disk is full or broken, or too many files are open. SetupError: the path cannot be written.
    """
    seen: BaseException | None = error
    while seen is not None:
        named = getattr(seen, "filename", None)
        where = path or (named if isinstance(named, str) else "")
        number = _number(seen)
        if number in FULL:
            what = "disk full or quota exceeded" if number == 122 else "disk full"
            what = "the limit on the size of a file is reached (ulimit -f)" if number == 27 else what
            return ResourceError(f"{what} while writing {where or 'a file or the output'}",
                                 "free some space, then run the same command again")  # fmt: skip
        if number in UNREADABLE:
            what = f"the disk reports an error at {named or where or 'a file'}: {os.strerror(number)}"
            return ResourceError(what, "check the disk (dmesg, df), then run the same command again")
        if number in TOO_MANY_FILES:
            return ResourceError("too many open files", "ulimit -n 4096, then run the same command again")
        if number in REFUSED and where:
            hint = "set GENFLOW_STORE to a folder that you can write to" if path else f"ls -ld {where}"
            return SetupError(f"cannot {'write' if path else 'access'} {where}: {os.strerror(number)}", hint)
        seen = seen.__cause__
    return None


def _number(error: BaseException) -> int:
    """The number of the operating system's error; 0 if it is not such an error."""
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and isinstance(number, int):
        return number
    text = str(error)
    if found := NUMBER.search(text):
        return int(found[1])
    return next((number for part, number in SQLITE.items() if part in text), 0)


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one line, whichever library raised it.

    Raises:
        ResourceError: the disk is full or broken.
        SetupError: the path cannot be written.
    """
    try:
        yield
    except GenflowError:
        raise
    except Exception as error:
        if (explained := disk_error(error, path)) is None:
            raise
        raise explained from error
