"""What every job does around its work: read its document, speak in events, end with the right code."""

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
from genflow.system import environment, events
from genflow.system.documents import Json
from genflow.tracking import sync

Emit = Callable[..., None]
Main = Callable[[Json, Emit], Mapping[str, Any]]


def execute(main: Main) -> None:
    """Run a job named on the command line: `python -m jobs.<stage> recipe.yaml`."""
    environment.set_defaults()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, _interrupt)
        # A job is asked to stop by SIGINT, from the command or from Ray. Where either was started in the background of
        # a shell, SIGINT is ignored and the job inherits that: it would run on until it is killed, without saving.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    document = read(Path(sys.argv[1]))
    sys.exit(attempt(main, document, events.emit))


def attempt(main: Main, document: Json, emit: Emit) -> int:
    """Run a job's `main`, turn what happens into one `result` or one `error` event, and return the exit code."""
    try:
        emit("result", document=main(document, emit))
        return 0
    except GenflowError as error:
        fail(emit, error)
        return error.code
    except KeyboardInterrupt as error:
        code = 143 if error.args == ("SIGTERM",) else 130
        emit("error", message="interrupted", hint="run the same command again: it goes on", code=code, kind="Stopped")
        return code
    except Exception as error:
        if is_out_of_memory(error):
            fail(emit, ResourceError("out of memory", "try a smaller --set train.batch, or a machine with more"), error)
            return ResourceError.code
        first = str(error).strip().splitlines()
        message = f"{type(error).__name__}: {first[0] if first else 'no message'}"
        fail(emit, GenflowError(message, "run it again with -v for the traceback"), error)
        return GenflowError.code


def warn_of_gap(emit: Emit, id: str, sent: sync.SendResult) -> None:
    """Say what MLflow lacks of a run, a search or a report; nothing if it has all."""
    if not sent.complete:
        hint = "genflow ui sends the rest when it is back"
        emit("warning", message=f"MLflow lacks some of {id}: {sent.problem}", hint=hint)


def fail(emit: Emit, error: GenflowError, cause: BaseException | None = None) -> None:
    """Say what went wrong as one event; the traceback rides along for -v."""
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
    """Whether the command was given -v."""
    return bool(os.environ.get("GENFLOW_VERBOSE"))
