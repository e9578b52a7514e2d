"""A job as a child process of this machine: what it sees, how signals reach it, and that it dies with its parent."""

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


def follow(process: "subprocess.Popen[str]", on_event: Callable[[events.Event], None], noise: Any) -> Any:
    """Pass a job's events on until it ends, and its stop signals to it; return its last word."""
    last = None
    before = signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
    try:
        assert process.stdout is not None
        while True:
            try:
                for line in process.stdout:
                    event = events.parse(line)
                    if event is None:
                        print(line, end="", file=noise or sys.stderr)
                    elif event["event"] in ("result", "error"):
                        last = event
                    else:
                        on_event(event)
                break
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)  # it saves and ends by itself
                process.send_signal(signal.SIGCONT)  # if it was stopped
                on_event({"event": "note", "message": "stopping; press Ctrl-C again to stop at once"})
        process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            process.kill()
            process.wait()
    return last


def environment(store: Store, verbose: bool) -> dict[str, str]:
    """What a child sees: this process's variables, the store, and genflow before all else on its path."""
    paths = [str(resources_dir()), str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "GENFLOW_STORE": store.url,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(p for p in paths if p)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # a ray.py in the current folder must not stand before Ray
        **({"GENFLOW_VERBOSE": "1"} if verbose else {}),
    }
