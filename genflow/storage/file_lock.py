"""A lock on a file, which ends with the process that holds it, and whose holder may delete the file.

The file names the process and what it uses, one a line.
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import TextIO

LOCK_TRIES = 5  # before a lock counts as held


class Held(Exception):  # noqa: N818  a state, which the caller reports in its own words
    """Another process holds the lock; the message is that process, or `unknown`."""


def open_locked(path: Path, wait: bool) -> TextIO:
    """The open lock file, locked until it is closed.

    Raises:
        Held: another process holds the lock, and `wait` is false.
    """
    tries = 0
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  the caller closes it, which unlocks it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
            file.close()  # the process that held the lock has deleted the file
        except BaseException as error:
            file.seek(0)
            process = file.readline().strip()
            file.close()
            if not isinstance(error, BlockingIOError):
                raise
            if (tries := tries + 1) > LOCK_TRIES:
                raise Held(process or "unknown") from error
            time.sleep(0.02)  # `held_text` of another process holds the lock for a moment


def held_text(path: Path) -> str:
    """The content of a lock file whose lock a process holds; empty if it is free."""
    try:
        with open(path, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "unknown"
    except OSError:
        pass
    return ""
