"""Run two training workers as two processes that communicate through gloo, without Ray."""

import os
import subprocess
import sys
from pathlib import Path

from support import ROOT, TESTS

SETUP = """
import sys
import torch, torch.distributed as dist

rank, folder, rest = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
"""
TEARDOWN = """
dist.destroy_process_group()
"""


def two_workers(code: str, folder: Path, *rest: str) -> None:
    """Run the code in two connected processes, with the names `rank`, `folder`, `rest`, `torch` and `dist` defined."""
    path = os.pathsep.join([str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", SETUP + code + TEARDOWN, str(rank), str(folder), *rest] for rank in (0, 1)]
    workers = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        assert [worker.wait(timeout=400) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
