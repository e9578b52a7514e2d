"""Send a job: run it here in a child process, or through the Ray Jobs API of a cluster. One road for both.

A job is a document (recipe and inputs) and the name of a stage; what comes back are events (see `events`), the
last of which is its result or its error. `genflow/` and `jobs/` name each other only by strings: the process
boundary is a parcel and a command line, `python -m jobs.<stage> recipe.yaml`.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genflow import env, events
from genflow.code import home
from genflow.errors import BY_CODE, GenflowError
from genflow.recipe import dump
from genflow.store import Store

Document = dict[str, Any]


def run_here(
    stage: str, document: Document, store: Store, on_event: Callable[[events.Event], None], *, verbose: bool = False
) -> Document:
    """Run a job in a child process of this machine and return its result.

    Args:
        stage: the job's name: `jobs/<stage>.py`.
        document: `{"recipe": ..., "inputs": ...}`.
        store: where artifacts go.
        on_event: called with every event but the last.
        verbose: whether the job's own output is shown.

    Raises:
        GenflowError: the job's error, of its own kind; or that it died.
    """
    env.quiet()
    log = store.root / "logs" / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with tempfile.TemporaryDirectory(prefix="genflow-") as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(dump(document))
        with open(Path(folder) / "log", "w") as noise:
            process = subprocess.Popen(
                [sys.executable, "-m", f"jobs.{stage}", str(recipe)],
                env=_environment(store, verbose), text=True, errors="replace", preexec_fn=_die_with_parent,
                start_new_session=True,  # signals of the terminal reach it through this process alone, once
                stdout=subprocess.PIPE, stderr=None if verbose else noise,
            )  # fmt: skip
            last = _follow(process, on_event, None if verbose else noise)
        if last and last["event"] == "result":
            return last["document"]
        error = failure(last, process.returncode)
        if error.code == GenflowError.code and not verbose:  # nobody foresaw it: keep what the job said
            log.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder) / "log", log)
            error.hint = f"{error.hint}; its log: {log}".removeprefix("; ")
        raise error


def failure(last: events.Event | None, code: int) -> GenflowError:
    """The error that a job ended with, or that it ended without a word."""
    if last is None:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code} without a word"
        return GenflowError(f"the job {how}")
    kind = BY_CODE.get(last.get("code", 1), GenflowError)
    error = kind(last["message"], last.get("hint", ""))
    error.code = last.get("code", 1)  # 130 and 143 have no class of their own
    if trace := last.get("traceback"):
        error.add_note(trace)
    return error


def _follow(process: "subprocess.Popen[str]", on_event: Callable[[events.Event], None], noise: Any) -> Any:
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
                on_event({"event": "note", "message": "stopping; press Ctrl-C again to stop at once"})
        process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            process.kill()
            process.wait()
    return last


def _environment(store: Store, verbose: bool) -> dict[str, str]:
    paths = [str(home()), str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "GENFLOW_STORE": str(store.root),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(p for p in paths if p)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # a ray.py in the current folder must not stand before Ray
        **({"GENFLOW_VERBOSE": "1"} if verbose else {}),
    }


def _die_with_parent() -> None:
    """Ask Linux to end the child when its parent dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
