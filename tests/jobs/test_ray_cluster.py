"""A Ray of one's own: on the loopback, and gone without a trace."""

import os
import signal
from collections import defaultdict
from pathlib import Path

import pytest

from jobs.runtime.cluster import ray_cluster

LISTENING = "0A"


def descendants(pid: int) -> set[int]:
    """The processes that a process started, and theirs."""
    children = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children[parent].append(int(folder.name))
    found, todo = set(), [pid]
    while todo:
        todo += children[pid := todo.pop()]
        found.add(pid)
    return found


def listening(pids: set[int]) -> set[str]:
    """The addresses, in hexadecimal, on which some processes listen."""
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
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in sockets:
                found.add(fields[1].partition(":")[0])
    return found


@pytest.mark.ray
def test_every_socket_is_on_the_loopback(ray_local: None) -> None:
    """Neither Ray's daemons nor this process listen where another machine could reach them."""
    here, mapped = "0100007F", "0000000000000000FFFF00000100007F"  # 127.0.0.1, and as IPv6 writes it
    addresses = listening(descendants(os.getpid()))
    assert here in addresses
    assert addresses <= {here, mapped}


@pytest.mark.ray
def test_a_ray_that_runs_is_joined(ray_local: None) -> None:
    """Within a Ray, another is not started, and it is not stopped at the block's end."""
    import ray

    before = ray.get_runtime_context().gcs_address
    with ray_cluster():
        assert ray.get_runtime_context().gcs_address == before
    assert ray.is_initialized()


@pytest.mark.ray
def test_sigterm_keeps_its_meaning(ray_local: None) -> None:
    """Ray's own handler, which ends a process with code 15, is not in place."""
    handler = signal.getsignal(signal.SIGTERM)
    assert getattr(handler, "__module__", "") != "ray._private.worker"
