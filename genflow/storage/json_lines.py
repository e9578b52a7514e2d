"""Append-only files with one JSON document per line: a run's journal, a search's log, a trial's reports.

A killed writer may leave an incomplete last line. The next writer starts a new line, and readers skip lines that are
not JSON. A crash therefore costs one line.
"""

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genflow.storage.files import sync_folder


def end_torn_line(descriptor: int) -> None:
    """Write a newline if the last line is incomplete. Call it once, when the file is opened.

    A check before every append would race with other writers: a line that is still being written looks incomplete.

    Args:
        descriptor: the file, open for reading and appending.
    """
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")


def append_line(descriptor: int, entry: Mapping[str, Any], *, default: Callable[[Any], Any] | None = None) -> None:
    """Append an entry with one write and without fsync. With O_APPEND, the lines of several writers never mix.

    Args:
        descriptor: the file, open for appending.
        entry: a JSON document.
        default: converts a value that JSON cannot represent; None: such a value raises TypeError.

    Raises:
        OSError: the disk is full; part of the line may have been written.
    """
    line = json.dumps(entry, default=default, separators=(",", ":")).encode() + b"\n"
    if os.write(descriptor, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def append_durably(path: Path, entry: Mapping[str, Any]) -> None:
    """Append an entry to a file that has one writer, and fsync the file and its folder. Creates a missing file.

    Raises:
        OSError: from `append_line`, or because the file cannot be written.
    """
    with open(path, "ab+", buffering=0) as file:
        end_torn_line(file.fileno())
        append_line(file.fileno(), entry)
        os.fsync(file.fileno())
    sync_folder(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a file in order; an empty list if there is no file. Incomplete lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
