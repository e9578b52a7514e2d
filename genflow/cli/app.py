"""The program `genflow`: registers the commands, and turns an error into one line and an exit code.

Help is instant: no module that this one imports may import more than Typer as it is loaded, so everything heavy is
imported inside a command. Results go to standard output, progress and errors to standard error; see `console` and
`errors` for the contract on JSON and exit codes.
"""

import os
import sys
from typing import Annotated, Any

import typer

from genflow import __version__
from genflow.cli import cluster, console, data, endpoints, jobs, runs
from genflow.cli.doctor import doctor
from genflow.cli.evaluate import compare, evaluate
from genflow.cli.export import export
from genflow.cli.families import families
from genflow.cli.prepare import prepare
from genflow.cli.promote import promote
from genflow.cli.recommend import recommend
from genflow.cli.reflow import reflow
from genflow.cli.run import quickstart, run
from genflow.cli.sample import sample
from genflow.cli.serve import serve
from genflow.cli.tables import tables
from genflow.cli.train import train
from genflow.cli.tune import tune
from genflow.cli.ui import ui
from genflow.errors import GenflowError, UsageError

app = typer.Typer(
    name="genflow",
    help="Train, compare, sample and serve families of image generators on your own images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="-v anywhere shows the traceback of an error. GENFLOW_STORE is where artifacts lie (default: .genflow).",
)
for command in (
    quickstart, prepare, train, tune, reflow, evaluate, compare, tables, recommend, sample, export, serve, run, ui,
    families, doctor, promote,
):  # fmt: skip
    app.command()(command)
app.add_typer(runs.app, name="runs")
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(endpoints.app, name="endpoints")
app.add_typer(cluster.app, name="cluster")


def main() -> None:
    """The `genflow` program."""
    verbose = _pop_verbose_flag()
    command = typer.main.get_command(app)
    try:
        code = command.main(args=sys.argv[1:], prog_name="genflow", standalone_mode=False)
    except GenflowError as error:
        code = console.fail(error, verbose)
    except (KeyboardInterrupt, EOFError):
        console.note("interrupted")
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        if hasattr(error, "format_message"):  # Typer's own, of a wrong flag or argument
            sys.exit(_report_usage_error(error, verbose))
        first = str(error).strip().splitlines()
        wrapped = GenflowError(
            f"{type(error).__name__}: {first[0] if first else 'no message'}", "run it again with -v for the traceback"
        )
        wrapped.__cause__ = error
        code = console.fail(wrapped, verbose)
    sys.exit(code or 0)


def _report_usage_error(error: Any, verbose: bool) -> int:
    """A wrong flag or argument, in one line; a command without any shows its help."""
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(context.get_help())
        return 2
    path = context.command_path if context else "genflow"
    text = str(error.format_message()).rstrip(".")
    return console.fail(UsageError(text[:1].lower() + text[1:], f"{path} --help"), verbose)


def _pop_verbose_flag() -> bool:
    """-v and --verbose may stand anywhere."""
    flags = [a for a in sys.argv[1:] if a in ("-v", "--verbose")]
    sys.argv[1:] = [a for a in sys.argv[1:] if a not in flags]
    if flags:
        os.environ["GENFLOW_VERBOSE"] = "1"  # the job that a command sends shall know it, too
    return bool(os.environ.get("GENFLOW_VERBOSE"))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(f"genflow {__version__}")
        raise typer.Exit
