"""A process beside this one, and the socket between them. Each learns of the other's end from the socket's."""

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
    """Run `python -m module SOCKET ARGUMENTS`, where SOCKET is the number of the file descriptor of its end.

    Args:
        module: of genflow.
        arguments: after the socket's.
        pass_fds: other file descriptors that it keeps.
        options: of `subprocess.Popen`.

    Returns:
        The process, and this end.
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
