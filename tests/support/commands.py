"""Run the command `genflow` in the process of the test."""

import sys
from collections.abc import Callable

import pytest

from genflow.cli import app

Command = Callable[..., tuple[int, str, str]]


def in_this_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs a command and returns (exit code, standard output, standard error)."""
    monkeypatch.setenv("GENFLOW_VERBOSE", "")  # restored after the test, although the flag -v sets it

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["genflow", *args])
        with pytest.raises(SystemExit) as end:
            app.main()
        out = capsys.readouterr()
        return int(end.value.code or 0), out.out, out.err

    return run
