"""A lock on a file, which ends with the process that holds it, and whose holder may delete the file.

The file names the process and what it uses, one a line.
"""

import contextlib
import fcntl
import os
import time
from itertools import count
from pathlib import Path
from typing import TextIO

LOCK_TRIES = 5  # before a lock counts as held


def open_locked(path: Path, wait: bool) -> TextIO | str:
    """The open lock file, locked; if another process holds the lock and `wait` is false, the content of the file."""
    for attempt in count():
        file = open(path, "a+")  # noqa: SIM115  the caller closes it, which unlocks it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            with file:
                file.seek(0)
                text = file.read().partition("\n")[0].strip()
            if attempt >= LOCK_TRIES:
                return text
            time.sleep(0.02)  # `held_text` of another process holds the lock for a moment
            continue
        except BaseException:
            file.close()
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # the process that held the lock has deleted the file
    raise AssertionError("unreachable")


def held_text(path: Path) -> str:
    """The content of a lock file whose lock a process holds; empty if it is free."""
    try:
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "unknown"
    except OSError:
        pass
    return ""
