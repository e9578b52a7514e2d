"""A job as a child process on this machine: its environment, its events, and the signals that it receives."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genflow.storage.store import Store
from genflow.system import events
from genflow.system.source_hash import resources_dir


def follow(process: "subprocess.Popen[str]", on_event: Callable[[events.Event], None], log: Any) -> Any:
    """Forward the events of a job until it ends, and forward SIGTERM and Ctrl-C to it.

    Args:
        process: the job, with its standard output as a text pipe.
        on_event: called with every event except the last.
        log: file for output lines that are not events; None uses standard error.

    Returns:
        The last event, a result or an error; None if the job reported neither.
    """
    last = None
    before = signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
    try:
        assert process.stdout is not None
        while True:
            try:
                for line in process.stdout:
                    event = events.parse(line)
                    if event is None:
                        print(line, end="", file=log or sys.stderr)
                    elif event["event"] in ("result", "error"):
                        last = event
                    else:
                        on_event(event)
                break
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)  # the job saves a checkpoint and exits
                process.send_signal(signal.SIGCONT)  # a job suspended by SIGSTOP could not react
                on_event({"event": "note", "message": "stopping; press Ctrl-C again to stop immediately"})
        process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            process.kill()
            process.wait()
    return last


def environment(store: Store, verbose: bool) -> dict[str, str]:
    """The environment of a child: this process's variables, the store, and genflow first on PYTHONPATH."""
    paths = [str(resources_dir()), str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "GENFLOW_STORE": store.url,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(p for p in paths if p)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",  # `follow` reads the output as UTF-8, whatever the locale of the terminal is
        "PYTHONSAFEPATH": "1",  # a file ray.py in the current folder must not shadow the package ray
        **({"GENFLOW_VERBOSE": "1"} if verbose else {}),
    }
