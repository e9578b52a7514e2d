"""The rendezvous of workers listens on one address only."""

import os
import subprocess
import sys
from typing import Any

from support import ROOT

from genflow.system.ports import free_port

PROGRAM = """
import os, sys
sys.path.insert(0, "tests")
import torch
import torch.distributed as dist
from support.processes import listening
whose, rank, world, port = sys.argv[1], *map(int, sys.argv[2:])
if whose == "ours":
    from jobs.runtime.train.worker_group import bind_store_to_address
    bind_store_to_address()
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
dist.init_process_group("gloo", init_method="env://", rank=rank, world_size=world)
number = torch.ones(())
dist.all_reduce(number)
assert number == world
print(*sorted(listening({os.getpid()})))
dist.barrier()
dist.destroy_process_group()
"""


def addresses(whose: str, world: int) -> set[str]:
    environment, port = {**os.environ, "PYTHONPATH": str(ROOT)}, str(free_port())
    commands = [[sys.executable, "-c", PROGRAM, whose, str(rank), str(world), port] for rank in range(world)]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "encoding": "utf-8"}
    workers = [subprocess.Popen(c, cwd=ROOT, env=environment, **streams) for c in commands]
    try:
        return {address for worker in workers for address in worker.communicate(timeout=240)[0].split()}
    finally:
        for worker in workers:
            worker.kill()


def test_torchs_store_is_on_the_loopback() -> None:
    """Two workers connect there; for comparison, torch's own store listens on every interface."""
    assert addresses("ours", 2) == {"0100007F"}
    assert "0" * 32 in addresses("torch's", 1)
