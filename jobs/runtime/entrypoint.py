"""The entry point of every job: read its document, emit events, exit with the right code."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genflow.errors import GenflowError, ResourceError, is_out_of_memory
from genflow.recipe.files import read
from genflow.storage.files import disk_error
from genflow.system import environment, events
from genflow.system.documents import Json
from genflow.system.streams import prepare_streams
from genflow.tracking import sync

Emit = Callable[..., None]
Main = Callable[[Json, Emit], Mapping[str, Any]]


def execute(main: Main) -> None:
    """Run a job named on the command line: `python -m jobs.<stage> recipe.yaml`."""
    prepare_streams()
    environment.set_defaults()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, _interrupt)
        # The command and Ray stop a job by SIGINT. If a shell started them in the background, they ignore SIGINT, and
        # the job inherits that: without this handler it would run until it is killed, and not save.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    document = read(Path(sys.argv[1]))
    sys.exit(run_and_report(main, document, events.emit))


def run_and_report(main: Main, document: Json, emit: Emit) -> int:
    """Run a job's `main`, emit one `result` or one `error` event, and return the exit code."""
    try:
        emit("result", document=main(document, emit))
        return 0
    except GenflowError as error:
        emit_error(emit, error)
        return error.code
    except KeyboardInterrupt as error:
        code = 143 if error.args == ("SIGTERM",) else 130
        emit("error", message="interrupted", hint="run the same command again to resume", code=code, kind="Stopped")
        return code
    except Exception as error:
        if is_out_of_memory(error):
            hint = "use a smaller --set train.batch, or a machine with more memory"
            emit_error(emit, ResourceError("out of memory", hint), error)
            return ResourceError.code
        if (full := disk_error(error)) is not None:
            emit_error(emit, full, error)
            return full.code
        first = str(error).strip().splitlines()
        message = f"{type(error).__name__}: {first[0] if first else 'no message'}"
        emit_error(emit, GenflowError(message, "run it again with -v for the traceback"), error)
        return GenflowError.code


def warn_if_incomplete(emit: Emit, id: str, sent: sync.SendResult) -> None:
    """Emit a warning if MLflow lacks data of a run, a search or a report."""
    if not sent.complete:
        hint = "when MLflow is available again, genflow ui sends the rest"
        emit("warning", message=f"MLflow lacks some data of {id}: {sent.problem}", hint=hint)


def emit_error(emit: Emit, error: GenflowError, cause: BaseException | None = None) -> None:
    """Emit an error as one event, which contains the traceback for -v."""
    emit(
        "error",
        message=error.message,
        hint=error.hint,
        code=error.code,
        kind=type(cause or error).__name__,
        traceback="".join(traceback.format_exception(cause or error)),
    )


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt("SIGTERM")


def verbose() -> bool:
    """Whether the command has the flag -v."""
    return bool(os.environ.get("GENFLOW_VERBOSE"))
