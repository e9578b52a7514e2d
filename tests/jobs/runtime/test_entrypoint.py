"""The entry point of jobs: reaction to stop signals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from genflow.system import events, source_hash

PROGRAM = """
import time
from jobs.runtime.entrypoint import execute

def main(document, emit):
    emit("note", message="running")
    time.sleep(120)

execute(main)
"""


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_job_handles_signals_that_its_parent_ignores(tmp_path: Path, signum: signal.Signals, exit_code: int) -> None:
    """A shell starts background commands with SIGINT ignored; a job that inherits this still stops."""
    document = tmp_path / "recipe.yaml"
    document.write_text("{}", encoding="utf-8")
    path = {"PYTHONPATH": str(source_hash.resources_dir())}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(document)], env=os.environ | path,
        stdout=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signum, signal.SIG_IGN), encoding="utf-8",
    )  # fmt: skip
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    emitted = [event["event"] for line in lines if (event := parse_and_signal(line, process, signum))]
    assert process.wait() == exit_code
    assert emitted == ["note", "error"]


def parse_and_signal(line: str, process: "subprocess.Popen[str]", signum: signal.Signals) -> events.Event | None:
    """Parse the event in a line; after the note, send the signal."""
    event = events.parse(line)
    if event and event["event"] == "note":
        process.send_signal(signum)
    return event
