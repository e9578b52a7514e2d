"""Run a job in a child process of this machine."""

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

from genflow.errors import BY_CODE, GenflowError
from genflow.launch import child_process
from genflow.recipe.files import dump
from genflow.storage.store import Store
from genflow.system import environment, events

Document = dict[str, Any]
OnEvent = Callable[[events.Event], None]


def run_local(stage: str, document: Document, store: Store, on_event: OnEvent, *, verbose: bool = False) -> Document:
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
    environment.set_defaults()
    log = store.root / "logs" / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with tempfile.TemporaryDirectory(prefix="genflow-") as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(dump(document))
        with open(Path(folder) / "log", "w") as noise:
            process = subprocess.Popen(
                [sys.executable, "-m", f"jobs.{stage}", str(recipe)],
                env=child_process.environment(store, verbose), preexec_fn=environment.die_with_parent,
                text=True, errors="replace",
                start_new_session=True,  # signals of the terminal reach it through this process alone, once
                stdout=subprocess.PIPE, stderr=None if verbose else noise,
            )  # fmt: skip
            last = child_process.follow(process, on_event, None if verbose else noise)
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
        if code == -signal.SIGKILL:  # the kernel says nothing to whom it ends
            return GenflowError(
                "the job was killed (signal 9): by somebody, or by the kernel when memory ran out",
                "run the same command again: it goes on; for less memory, a smaller --set train.batch",
            )
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code} without a word"
        return GenflowError(f"the job {how}", "run the same command again: it goes on")
    kind = BY_CODE.get(last.get("code", 1), GenflowError)
    error = kind(last["message"], last.get("hint", ""))
    error.code = last.get("code", 1)  # 130 and 143 have no class of their own
    if trace := last.get("traceback"):
        error.add_note(trace)
    return error
