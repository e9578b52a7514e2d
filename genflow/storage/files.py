"""Files that survive a crash: atomic writes, fsync, leftovers of killed processes, disk errors in one line."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genflow.errors import GenflowError, ResourceError, SetupError

HOSTNAME = os.uname().nodename  # whose process ids an attempt's name speaks of: a store may be shared


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that are gone left unfinished in a folder."""
    for torn in folder.glob(f"*.tmp-{HOSTNAME}-*"):
        pid = int(torn.name.rpartition(f".tmp-{HOSTNAME}-")[2].partition("-")[0])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            shutil.rmtree(torn, ignore_errors=True)
        except PermissionError:  # alive, and somebody else's
            continue


def sync_folder(path: Path) -> None:
    """Put a folder's entries on the disk for good."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Replace a small file: readers see the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt = path.with_name(f".{path.name}.tmp-{os.getpid()}-{time.monotonic_ns() & 0xFFFFFF:x}")
    try:
        with open(attempt, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(attempt, path)
    except BaseException:
        attempt.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or forbidden disk into one line, whoever met it."""
    try:
        yield
    except GenflowError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        if found := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors has an error of its own
            number = int(found[1])
        if number in (28, 122):  # ENOSPC, EDQUOT
            raise ResourceError(f"disk full while writing {path}", "free some space and run the command again"
                                ) from error
        if number in (13, 30, 1, 20):  # EACCES, EROFS, EPERM, ENOTDIR
            cure = "set GENFLOW_STORE to a folder you may write"
            raise SetupError(f"cannot write {path}: {os.strerror(number)}", cure) from error
        raise
