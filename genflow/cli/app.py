"""The program `genflow`: call a command, and turn an error into one line and an exit code.

`genflow --help` imports no command (`commands`), and a command imports heavy packages inside its function. Results go
to standard output; progress and errors go to standard error. `console` defines the JSON output and `errors` the exit
codes.
"""

import contextlib
import os
import sys
from typing import Annotated, Any

import typer

from genflow import __version__
from genflow.cli import console
from genflow.cli.commands import Program
from genflow.errors import GenflowError, ResourceError, UsageError, plain
from genflow.system import environment
from genflow.system.streams import prepare_streams

app = typer.Typer(
    name="genflow",
    cls=Program,
    help="Train, compare, sample and serve families of image generators on your own images.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog="Add -v to any command to see the traceback of an error. GENFLOW_STORE names the folder for datasets, runs "
    "and reports (default: .genflow).",
)


def main() -> None:
    """Run the program `genflow` and exit with the code of the command."""
    prepare_streams()
    verbose = _pop_verbose_flag()
    command = typer.main.get_command(app)
    try:
        environment.ensure_home()
        code = command.main(args=sys.argv[1:], prog_name="genflow", standalone_mode=False)
    except GenflowError as error:
        code = console.fail(error, verbose)
    except (KeyboardInterrupt, EOFError):
        console.note("interrupted")
        code = 130
    except BrokenPipeError:
        code = 141
    except Exception as error:
        if hasattr(error, "format_message"):  # raised by Typer for a wrong flag or argument
            code = _report_usage_error(error, verbose)
        else:
            code = console.fail(_explain(error), verbose)
    sys.exit(_flush(code or 0, verbose))


def _explain(error: Exception) -> GenflowError:
    """An error that no module expected, in one line; an error of the disk names the path and the fix."""
    from genflow.storage.files import disk_error  # not at the top: `genflow --help` imports this module

    wrapped: GenflowError
    if (found := disk_error(error)) is not None:
        wrapped = found
    else:
        first = str(error).strip().splitlines()
        wrapped = GenflowError(
            f"{type(error).__name__}: {first[0] if first else 'no message'}",
            "run the same command with -v to see the traceback",
        )
    wrapped.__cause__ = error
    return wrapped


def _flush(code: int, verbose: bool) -> int:
    """Write the rest of the output; return the exit code.

    A reader that has closed the pipe does not need the rest, so the exit code stays that of the command. A full disk
    behind standard output is an error, because the output is incomplete.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _discard_output()
        reason = error.strerror or str(error)
        full = ResourceError(f"cannot write to standard output: {reason}", "write the output to another disk")
        return code or console.fail(full, verbose)
    return code


def _discard_output() -> None:
    """Send what the buffer of standard output still holds to the null device, or Python fails when it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_usage_error(error: Any, verbose: bool) -> int:
    """Print a wrong flag or argument as one line; print the help if a command received no arguments."""
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        if text := str(error.format_message()).strip():  # with rich, Typer has printed the help
            print(text)
        return 2
    path = context.command_path if context else "genflow"
    flag, colon, problem = str(error.format_message()).rstrip(".").partition(": ")
    problem = plain(problem)
    if problem.startswith("must be ") and hasattr(error.__cause__, "errors"):  # pydantic's
        problem += f", not {error.__cause__.errors()[0]['input']!r}"
    return console.fail(UsageError(plain(flag) + colon + problem, f"{path} --help"), verbose)


def _pop_verbose_flag() -> bool:
    """Remove -v and --verbose from the arguments, wherever they are; whether verbose output is on."""
    flags = [a for a in sys.argv[1:] if a in ("-v", "--verbose")]
    sys.argv[1:] = [a for a in sys.argv[1:] if a not in flags]
    if flags:
        os.environ["GENFLOW_VERBOSE"] = "1"  # jobs inherit this variable
    return bool(os.environ.get("GENFLOW_VERBOSE"))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"genflow {__version__}")
        raise typer.Exit
