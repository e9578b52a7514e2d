"""Temporary folders of processes: private, removed at the end, and swept after a kill."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from genflow.storage import temporary

PROGRAM = """
import sys
from genflow.storage import temporary
folder = temporary.make("ray", sys.argv[1])
(folder / "s").mkdir()
(folder / "s" / "object").write_bytes(b"x")
print(folder, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """Folders of a killed process are removed; those of a running one, and folders of something else, stay."""
    others = [tmp_path / "ray", tmp_path / "rays-of-light", tmp_path / "ray00000000"]
    for other in others:
        other.mkdir()
    (others[2] / temporary.OWNER).write_text("[]", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    processes = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        for _ in range(2)
    ]
    try:
        killed, running = (Path(process.stdout.readline().strip()) for process in processes if process.stdout)
        assert stat.S_IMODE(running.stat().st_mode) == 0o700
        processes[0].kill()
        processes[0].wait()
        with temporary.private_folder("ray", tmp_path) as own:
            assert not killed.exists()
            assert (running / "s" / "object").exists()
            assert own.is_dir()
            temporary.sweep("ray", tmp_path)
            assert own.is_dir()
        assert not own.exists()
        assert all(other.is_dir() for other in others)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("changed", [{"machine": "another"}, {"born": ""}, {"pid": "x"}])
def test_a_process_that_cannot_be_examined_keeps_its_folder(tmp_path: Path, changed: dict[str, str]) -> None:
    """The folder of a process of another machine or container, or of one that is not named clearly, stays."""
    folder = temporary.make("ray", tmp_path)
    owner = {**json.loads((folder / temporary.OWNER).read_bytes()), "pid": 2**22 + 1, **changed}
    (folder / temporary.OWNER).write_text(json.dumps(owner), encoding="utf-8")
    temporary.sweep("ray", tmp_path)
    assert folder.is_dir()
    owner = json.loads((folder / temporary.OWNER).read_bytes()) | {"machine": temporary.machine_id(), "pid": 2**22 + 1}
    (folder / temporary.OWNER).write_text(json.dumps(owner | {"born": "1"}), encoding="utf-8")
    temporary.sweep("ray", tmp_path)
    assert not folder.exists()
