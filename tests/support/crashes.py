"""End a process before one of its system calls that change a folder, at every one of them in turn."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

CHANGING = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir")


def crashes(work: Callable[[], Any]) -> Iterator[int]:
    """Run `work` in child processes: the nth ends before its nth system call, and the last one runs to its end.

    Yields the number of calls after each. The caller restores the state before the next one.
    """
    for allowed in range(1000):
        child = os.fork()
        if child == 0:
            _die_after(allowed)
            try:
                work()
            finally:
                ended = sys.exc_info()[0] is None
                os._exit(0 if ended else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9), f"the child failed after {allowed} calls"
        yield allowed
        if code == 0:
            return


def _die_after(allowed: int) -> None:
    left = allowed

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return call(*args, **options)

        return run

    for name in CHANGING:
        setattr(os, name, counted(getattr(os, name)))
