"""Files of one JSON document a line that are only appended to: a run's journal, a search's record, a trial's reports.

A writer that is killed may leave a torn last line. The next entry begins on a new line, and readers skip lines that are
not JSON, so a crash costs one line.
"""

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genflow.storage.files import sync_folder


def end_torn_line(descriptor: int) -> None:
    """Write a newline where the last writer was killed in the middle of a line. Call it once, when the file is opened.

    A check before every append would race with other writers: the end of a line that is still being written looks torn.

    Args:
        descriptor: of a file that is open for reading and appending.
    """
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")


def append_line(descriptor: int, entry: Mapping[str, Any], *, default: Callable[[Any], Any] | None = None) -> None:
    """Append an entry with one write, so that with O_APPEND the lines of several writers never mix. No fsync.

    Args:
        descriptor: of a file that is open for appending.
        entry: a JSON document.
        default: converts a value that JSON does not have; None: such a value is an error.

    Raises:
        OSError: the disk is full; a part of the line may be written.
    """
    line = json.dumps(entry, default=default, separators=(",", ":")).encode() + b"\n"
    if os.write(descriptor, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def append_durably(path: Path, entry: Mapping[str, Any]) -> None:
    """Append an entry to a file of one writer, which is created if it is missing, and fsync it and its folder.

    Raises:
        OSError: from `append_line`, or the file cannot be written.
    """
    with open(path, "ab+", buffering=0) as file:
        end_torn_line(file.fileno())
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
