"""Errors that a user can fix, each with an exit code.

    GenflowError                 1   the run failed
    ├── UsageError               2   a command, flag, recipe or reference is wrong
    ├── SetupError               3   the environment lacks something
    ├── ClusterError             4   the cluster is unreachable, or rejects a request
    ├── ResourceError            5   not enough machines, memory or disk
    ├── DataError                6   the data is invalid
    ├── GateError                7   a result did not pass a quality gate
    └── Stopped                  8   the command was stopped by a user

The `message` of an error says what is wrong, where and why. Its `hint` gives the command or value that fixes it.
"""

import difflib
import re


class GenflowError(Exception):
    """An error that a command prints as one line before it exits with `code`.

    Args:
        message: what is wrong, where, and why, without a full stop.
        hint: the command or the value that fixes it; "" if there is none.

    Attributes:
        code: the exit code.
    """

    code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Keep both arguments when the error is pickled by a Ray worker."""
        return type(self), (self.message, self.hint)

    def _render_traceback_(self) -> list[str]:
        """What IPython and Jupyter show in the place of a traceback: the lines that a command prints."""
        return [f"{type(self).__name__}: {self.message}", *([f"  fix: {self.hint}"] if self.hint else [])]


class UsageError(GenflowError):
    """A command, flag, recipe or reference is wrong."""

    code = 2


class SetupError(GenflowError):
    """The environment lacks something."""

    code = 3


class ClusterError(GenflowError):
    """The cluster is unreachable, or rejects a request."""

    code = 4


class ResourceError(GenflowError):
    """Not enough machines, memory or disk."""

    code = 5


class DataError(GenflowError):
    """The data is invalid."""

    code = 6


class GateError(GenflowError):
    """A result did not pass a quality gate."""

    code = 7


class Stopped(GenflowError):  # noqa: N818  a stop is not an error
    """The command was stopped by a user; the same command resumes it."""

    code = 8


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means "out of memory": from Python, from torch on a CPU or GPU, or from Ray."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


# The classes of errors that end a diverged training, as event and store name them; genflow 0.1 wrote the last.
DIVERGED = ("NonFinite", "TrainingDiverged", "Trouble")
BY_CODE: dict[int, type[GenflowError]] = {
    kind.code: kind
    for kind in (GenflowError, UsageError, SetupError, ClusterError, ResourceError, DataError, GateError, Stopped)
}


def plain(message: str) -> str:
    """What pydantic or Typer says of a wrong value, in the words of this project: `must be at least 1`.

    Args:
        message: for example `Input should be greater than or equal to 1`; its first letter becomes small.
    """
    for theirs, ours in PLAIN_WORDS.items():
        message = re.sub(theirs, ours, message)
    return message[:1].lower() + message[1:]


PLAIN_WORDS = {
    "^Value error, ": "",
    "Input should be": "must be",
    "Input should have|Data should have|(List|String|Tuple) should have": "must have",
    ", (unable to|got a number) .*": "",
    "a valid boolean": "true or false",
    "a valid string": "a text",
    "a valid integer": "a whole number",
    "a valid (number|list|dictionary)": r"a \1",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}  # by regular expression


def similar(word: object, known: list[str]) -> str:
    """A suffix for messages about an unknown word whose hint lists the known words: " (did you mean X?)", or empty."""
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def nearest(word: object, known: list[str]) -> str:
    """The suffix of `similar`; without a similar word it lists the known words, if there are at most 40."""
    listed = f" (known: {', '.join(sorted(known))})" if len(known) <= 40 else ""
    return similar(word, known) or listed
