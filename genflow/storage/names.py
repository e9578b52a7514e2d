"""What a name means if several artifacts have it: the one that a command named last.

    names/<kind>/<name>@<machine>.json   {"id": ...}, the last one on that machine; its time is that of the storage

Each machine has its own file, so that two machines do not overwrite each other's. The time of the storage decides which
machine was last, so that the clocks of the machines do not matter.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from genflow.storage.files import HOSTNAME, write_atomically
from genflow.storage.s3 import Bucket


@dataclass(frozen=True)
class Record:
    """What a machine named last.

    Args:
        machine: its host name.
        id: the artifact's id.
        time: when, in nanoseconds.
    """

    machine: str
    id: str
    time: int


class Names:
    """The records of a store.

    Args:
        root: the store's folder.
        bucket: the bucket of a store that is in one, which holds the records; None: the folder holds them.
    """

    def __init__(self, root: Path, bucket: Bucket | None) -> None:
        self.root, self.bucket = root, bucket

    def record(self, kind: str, name: str, id: str) -> None:
        """Record that a name means an artifact from now on."""
        key, content = f"names/{kind}/{name}@{HOSTNAME}.json", json.dumps({"id": id})
        if self.bucket:
            self.bucket.write(key, content.encode())
        else:
            write_atomically(self.root / key, content)

    def records(self, kind: str, name: str = "") -> dict[str, Record]:
        """The records of a name, or of all names, by file."""
        folder = f"names/{kind}"
        if self.bucket:
            times = {file: version[1] for file, version in self.bucket.list(folder).items() if version}
        else:
            files = (self.root / folder).glob("*@*.json")
            times = {file.name: file.stat().st_mtime_ns for file in files if not file.name.startswith(".")}
        found = {}
        for file, time in times.items():
            own, _, machine = file.removesuffix(".json").partition("@")
            if name in ("", own):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    key = f"{folder}/{file}"
                    content = self.bucket.read(key) if self.bucket else (self.root / key).read_bytes()
                    found[key] = Record(machine, str(json.loads(content or b"null")["id"]), time)
        return found

    def forget(self, kind: str, id: str) -> None:
        """Delete the records of an artifact that is deleted."""
        for key, record in self.records(kind).items():
            if record.id == id:
                if self.bucket:
                    self.bucket.delete(key)
                else:
                    (self.root / key).unlink(missing_ok=True)


def meaning(records: list[Record], ids: set[str]) -> str:
    """The id that a name means on this machine; empty if the records do not decide it.

    A machine means what it named last, unless another machine named a different one after that.

    Args:
        records: of the name.
        ids: of the artifacts that have the name.
    """
    found = [record for record in records if record.id in ids]
    own = [record for record in found if record.machine == HOSTNAME]
    since = [record for record in found if not own or record.time >= own[0].time]
    named = {record.id for record in since}
    return named.pop() if len(named) == 1 else ""
