"""Folders among the temporary files that belong to one process, and are removed after it, also if it was killed.

    /tmp/ray1a2b3c4d/       the session of a local Ray: sockets, logs, objects
    /tmp/genflow-1a2b3c4d/  documents and output of a job

Each has the mode 0700 and a file `owner.json` that names its process. Making one first removes
those of processes that no longer run. A folder without that file stays, and so does that of a process that cannot be
examined from here.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from genflow.storage.files import remove_leftover
from genflow.storage.lock import machine_id, process_start_time

OWNER = "owner.json"


def make(prefix: str, base: str | Path | None = None) -> Path:
    """Make a folder for this process, and remove those of dead processes.

    Args:
        prefix: how its name begins; eight characters follow.
        base: where; None: the folder for temporary files.

    Raises:
        OSError: the folder cannot be made.
    """
    base = Path(base or tempfile.gettempdir())
    sweep(prefix, base)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))  # mode 0700
    owner = {"machine": machine_id(), "pid": os.getpid(), "born": process_start_time(os.getpid())}
    try:
        (folder / OWNER).write_text(json.dumps(owner), encoding="utf-8")
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


@contextlib.contextmanager
def private_folder(prefix: str, base: str | Path | None = None) -> Iterator[Path]:
    """A folder of this process, which is removed at the end of the block; see `make`."""
    folder = make(prefix, base)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(prefix: str, base: Path) -> None:
    """Remove the folders whose process of this machine no longer runs."""
    for owner in base.glob(f"{prefix}*/{OWNER}"):
        if _is_abandoned(owner):
            for path in owner.parent.iterdir():
                if path != owner:
                    with contextlib.suppress(OSError):
                        remove_leftover(path)
            # What a daemon of the dead session writes meanwhile is found again by the owner's file.
            if [path.name for path in owner.parent.iterdir()] == [OWNER]:
                shutil.rmtree(owner.parent, ignore_errors=True)


def _is_abandoned(owner: Path) -> bool:
    """Whether the process that made a folder is known to have ended."""
    try:
        if owner.lstat().st_uid != os.getuid() or owner.parent.lstat().st_uid != os.getuid():
            return False
        document = json.loads(owner.read_bytes())
        if document["machine"] != machine_id() or not document["born"]:  # another container, or a system without /proc
            return False
        return bool(process_start_time(int(document["pid"])) != document["born"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
