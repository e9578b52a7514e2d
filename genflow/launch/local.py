"""Run a job in a child process on this machine."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from genflow.errors import BY_CODE, GenflowError
from genflow.launch import child_process
from genflow.recipe.files import dump
from genflow.storage.store import Store
from genflow.storage.temporary import private_folder
from genflow.system import environment, events
from genflow.system.documents import Json

OnEvent = Callable[[events.Event], None]


def run_local(stage: str, document: Json, store: Store, on_event: OnEvent, *, verbose: bool = False) -> Json:
    """Run a job in a child process on this machine and return its result.

    Args:
        stage: name of the job: `jobs/<stage>.py`.
        document: `{"recipe": ..., "inputs": ...}`.
        store: where the job writes artifacts.
        on_event: called with every event except the last.
        verbose: whether to show the output of the job.

    Raises:
        GenflowError: the error of the job, with its own class; or the job exited without reporting an error.
    """
    environment.set_defaults()
    log = store.root / "logs" / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with private_folder("genflow-") as folder:
        recipe = folder / "recipe.yaml"
        recipe.write_text(dump(document), encoding="utf-8")
        with open(folder / "log", "w", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", f"jobs.{stage}", str(recipe)],
                env=child_process.environment(store, verbose), preexec_fn=environment.die_with_parent,
                text=True, encoding="utf-8", errors="replace",
                start_new_session=True,  # a Ctrl-C on the terminal reaches it only once, through this process
                stdout=subprocess.PIPE, stderr=None if verbose else output,
            )  # fmt: skip
            last = child_process.follow(process, on_event, None if verbose else output)
        if last and last["event"] == "result":
            return last["document"]
        error = failure(last, process.returncode)
        if error.code == GenflowError.code and not verbose:  # an unexpected error: keep the output of the job
            with contextlib.suppress(OSError):  # the error matters more than its log, which a full disk cannot hold
                log.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / "log", log)
                error.hint = f"{error.hint}; log: {log}".removeprefix("; ")
        raise error


def failure(last: events.Event | None, code: int) -> GenflowError:
    """The error that a job reported; otherwise an error that describes its exit code or signal."""
    if last is None:
        if code == -signal.SIGKILL:  # the kernel does not report why
            return GenflowError(
                "the job was killed (signal 9), by a user or because memory ran out",
                "run the same command again to resume; a smaller --set train.batch=N needs less memory",
            )
        how = f"was ended by signal {-code}" if code < 0 else f"exited with code {code} without reporting an error"
        return GenflowError(f"the job {how}", "run the same command again to resume")
    kind = BY_CODE.get(last.get("code", 1), GenflowError)
    error = kind(last["message"], last.get("hint", ""))
    error.code = last.get("code", 1)  # 130 and 143 have no error class
    if trace := last.get("traceback"):
        error.add_note(trace)
    return error
