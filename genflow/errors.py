"""Everything that can go wrong and that a person can mend, each with its exit code.

    GenflowError                 1   the run failed
    ├── UsageError               2   a command, flag, recipe or reference is wrong
    ├── SetupError               3   the environment lacks something
    ├── ClusterError             4   the cluster is unreachable, or refuses
    ├── ResourceError            5   not enough machines, memory or disk
    ├── DataError                6   the data is invalid
    ├── GateError                7   a quality gate was missed
    └── Stopped                  8   somebody stopped it

An error says what is wrong, where and why in `message`, and the command that mends it in `hint`.
"""

import difflib


class GenflowError(Exception):
    """What a command prints as one line before it ends with `code`.

    Args:
        message: what is wrong, where, and why, without a full stop.
        hint: the command, or the value, that mends it.
    """

    code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Survive pickling on the way out of a Ray worker."""
        return type(self), (self.message, self.hint)


class UsageError(GenflowError):
    """A command, flag, recipe or reference is wrong."""

    code = 2


class SetupError(GenflowError):
    """The environment lacks something."""

    code = 3


class ClusterError(GenflowError):
    """The cluster is unreachable, or refuses."""

    code = 4


class ResourceError(GenflowError):
    """Not enough machines, memory or disk."""

    code = 5


class DataError(GenflowError):
    """The data is invalid."""

    code = 6


class GateError(GenflowError):
    """A quality gate was missed."""

    code = 7


class Stopped(GenflowError):  # noqa: N818  stopping is no error of anyone's
    """Somebody stopped it; running the same command again goes on."""

    code = 8


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is Python's, torch's on a CPU or a GPU, or Ray's word for it."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


# The classes of errors that end a diverged training, as event and store name them; genflow 0.1 wrote the last.
DIVERGED = ("NonFinite", "TrainingDiverged", "Trouble")
BY_CODE: dict[int, type[GenflowError]] = {
    kind.code: kind
    for kind in (GenflowError, UsageError, SetupError, ClusterError, ResourceError, DataError, GateError, Stopped)
}


def nearest(word: object, known: list[str]) -> str:
    """` (did you mean X?)`, or the list if nothing is near and the list is short."""
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (known: {', '.join(sorted(known))})" if len(known) <= 40 else ""
