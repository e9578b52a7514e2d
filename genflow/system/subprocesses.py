"""Start a helper process connected by a socket pair; either side sees EOF when the other exits."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def spawn(
    module: str, *arguments: str, pass_fds: Sequence[int] = (), **options: Any
) -> tuple["subprocess.Popen[bytes]", Connection]:
    """Run `python -m MODULE SOCKET ARGUMENTS`, where SOCKET is the file descriptor of the helper's socket.

    Args:
        module: the module to run.
        arguments: further command-line arguments.
        pass_fds: further file descriptors that the helper inherits.
        options: keyword arguments of `subprocess.Popen`.

    Returns:
        The process, and the connection to it.
    """
    ours, theirs = socket.socketpair()
    home = str(Path(__file__).parents[2])
    path = dict.fromkeys(p for p in (home, os.environ.get("PYTHONPATH", "")) if p)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno()), *arguments],
            pass_fds=(theirs.fileno(), *pass_fds), env=environment, stdin=subprocess.DEVNULL, **options,
        )  # fmt: skip
    return process, Connection(ours.detach())
