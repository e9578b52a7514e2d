"""The descendants of a process, and the addresses on which processes listen."""

import os
from collections import defaultdict
from pathlib import Path

LISTENING = "0A"


def descendants(pid: int) -> set[int]:
    """The ids of a process and all its descendants."""
    children = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            except OSError:
                continue
            children[parent].append(int(folder.name))
    found, todo = set(), [pid]
    while todo:
        todo += children[pid := todo.pop()]
        found.add(pid)
    return found


def listening(pids: set[int]) -> set[str]:
    """The addresses, in hexadecimal, on which the processes listen."""
    sockets = set()
    for pid in pids:
        try:
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                target = os.readlink(descriptor)
                if target.startswith("socket:["):
                    sockets.add(target[8:-1])
        except OSError:
            continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text(encoding="utf-8").splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in sockets:
                found.add(fields[1].partition(":")[0])
    return found
