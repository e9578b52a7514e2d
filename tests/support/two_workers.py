"""Run training workers as processes that communicate through gloo, without Ray."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

from support import ROOT, TESTS

SETUP = """
import sys
import torch, torch.distributed as dist

rank, world, meet, folder, rest = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5], sys.argv[5:]
dist.init_process_group("gloo", init_method=f"file://{folder}/{meet}", rank=rank, world_size=world)
"""
_meetings = itertools.count()
TEARDOWN = """
dist.destroy_process_group()
"""


def two_workers(code: str, folder: Path, *rest: str, world: int = 2) -> None:
    """Run the code in connected processes, with the names `rank`, `folder`, `rest`, `torch` and `dist` defined."""
    path = os.pathsep.join([str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    meet = f"meet-{next(_meetings)}"
    program = [sys.executable, "-c", SETUP + code + TEARDOWN]
    commands = [[*program, str(rank), str(world), meet, str(folder), *rest] for rank in range(world)]
    workers = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        assert [worker.wait(timeout=400) for worker in workers] == [0] * world
    finally:
        for worker in workers:
            worker.kill()
