"""Which code made an artifact: a hash of source files, the same from a checkout, a wheel and a parcel."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]


def resources_dir() -> Path:
    """The folder that holds `jobs/` and `pipelines/`: the checkout or parcel, or `genflow/_home` in a wheel."""
    inside = PACKAGE / "_home"
    return inside if inside.is_dir() else PACKAGE.parent


@cache
def fingerprint(*rooms: str) -> str:
    """The SHA-256 over the source files of some rooms.

    Args:
        rooms: files and folders as the repository names them, such as `"genflow/data"`, `"jobs/prepare.py"`.

    Raises:
        FileNotFoundError: there is no such room.
    """
    whole = hashlib.sha256()
    for room in sorted(rooms):
        for name, file in sources(room):
            whole.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def sources(room: str) -> list[tuple[str, Path]]:
    """A room's files with the names they have in the repository, in order.

    Raises:
        FileNotFoundError: there is no such room.
    """
    root = PACKAGE.parent if room.partition("/")[0] == PACKAGE.name else resources_dir()
    start = root / room
    if not start.exists():
        raise FileNotFoundError(f"no source at {start}")
    files = [start] if start.is_file() else [file for file in start.rglob("*") if file.is_file()]
    named = [(file.relative_to(root).as_posix(), file) for file in files]
    return sorted((name, file) for name, file in named if "__pycache__" not in name and "_home/" not in name)


def digest(value: Any, length: int = 10) -> str:
    """A short hash of a JSON value: the same for equal values, whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
