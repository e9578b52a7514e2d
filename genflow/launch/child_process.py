"""A job as a child process of this machine: what it sees, how signals reach it, and that it dies with its parent."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genflow.storage.store import Store
from genflow.system import events
from genflow.system.source_hash import resources_dir

STOPPED_S = 20.0  # a job that was stopped for so long is spoken of


def follow(process: "subprocess.Popen[str]", on_event: Callable[[events.Event], None], noise: Any) -> Any:
    """Pass a job's events on until it ends, and its stop signals to it; return its last word."""
    last = None
    threading.Thread(target=_watch, args=(process, on_event), name="watch", daemon=True).start()
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


def _watch(process: "subprocess.Popen[str]", on_event: Callable[[events.Event], None]) -> None:
    """Say that a job has been stopped by a signal; a terminal shows nothing of it, and only a person knows why."""
    since = 0.0
    while process.poll() is None:
        try:
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return
        now = time.monotonic()
        since = (since or now) if state == "T" else 0.0
        if since and now - since >= STOPPED_S:
            words = f"the job (process {process.pid}) was stopped by a signal, and waits"
            hint = f"kill -CONT {process.pid} lets it go on; Ctrl-C ends it"
            on_event({"event": "warning", "message": words, "hint": hint})
            since = math.inf  # once is enough, until it goes on
        time.sleep(STOPPED_S / 5)


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
