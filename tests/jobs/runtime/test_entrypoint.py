"""A job's frame: how it hears that it is asked to stop."""

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
    emit("note", message="it runs")
    time.sleep(120)

execute(main)
"""


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_job_hears_signals_that_its_parent_ignores(tmp_path: Path, signum: signal.Signals, exit_code: int) -> None:
    """A cluster or a command that a shell started in the background ignores SIGINT, and its jobs inherit that."""
    document = tmp_path / "recipe.yaml"
    document.write_text("{}")
    path = {"PYTHONPATH": str(source_hash.resources_dir())}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(document)], env=os.environ | path,
        stdout=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signum, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout is not None
    said = [event["event"] for line in iter(process.stdout.readline, "") if (event := heard(line, process, signum))]
    assert process.wait() == exit_code
    assert said == ["note", "error"]


def heard(line: str, process: "subprocess.Popen[str]", signum: signal.Signals) -> events.Event | None:
    """The event in a line; the first one is answered by the signal."""
    event = events.parse(line)
    if event and event["event"] == "note":
        process.send_signal(signum)
    return event
