"""Files of one JSON document a line that are only appended to: a run's journal, a search's record, a trial's reports.

A writer that is killed may leave a torn last line. The next entry begins on a new line, and readers skip lines that are
not JSON, so a crash costs one line.
"""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genflow.storage.files import sync_folder


def append_line(descriptor: int, entry: dict[str, Any], *, default: Callable[[Any], Any] | None = None) -> None:
    """Append an entry with one write, so that with O_APPEND no other writer can come between its bytes. No fsync.

    Args:
        descriptor: of a file that is open for reading and appending.
        entry: a JSON document.
        default: converts a value that JSON does not have; None: such a value is an error.

    Raises:
        OSError: the disk is full, and took a part of the line or nothing.
    """
    line = json.dumps(entry, default=default, separators=(",", ":")).encode() + b"\n"
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        line = b"\n" + line
    if os.write(descriptor, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def append_for_good(path: Path, entry: dict[str, Any]) -> None:
    """Append an entry to a file, which is made if it is not there, and put both on the disk for good.

    Raises:
        OSError: from `append_line`, or the file cannot be written.
    """
    with open(path, "ab+", buffering=0) as file:
        append_line(file.fileno(), entry)
        os.fsync(file.fileno())
    sync_folder(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a file in order; none if there is no file. A torn line is passed over."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
