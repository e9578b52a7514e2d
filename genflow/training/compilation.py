"""`torch.compile` of a run: of every net that a loss calls, with a cache of the run's own.

A net is compiled whole: it is one graph without breaks (`tests/training/test_compilation.py`). torch's default cache is
one folder for all programs of a user, in the folder for temporary files. With a folder of its own a run resumes without
compiling again, and what was compiled is deleted once the run has finished.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from genflow.system.environment import cache_folder

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # Triton's cache is inside, too


def compile_nets(player: nn.Module, **options: Any) -> None:
    """Compile a player in place; of a `ModuleDict`, which is never called itself, each of its nets.

    Args:
        player: of a family.
        options: of `torch.compile`.
    """
    for net in player.values() if isinstance(player, nn.ModuleDict) else [player]:
        net.compile(**options)


@contextlib.contextmanager
def cache_of(run: str) -> Iterator[Path]:
    """Within the block, what torch compiles is kept in a folder of the run on this machine; the value is the folder.

    Another folder that the environment names stays, and is never deleted.

    Args:
        run: the run's id.
    """
    if CACHE in os.environ:
        yield Path(os.environ[CACHE])
        return
    folder = cache_folder() / "compiled" / run
    os.environ[CACHE] = str(folder)
    try:
        yield folder
    finally:
        del os.environ[CACHE]


def forget(run: str) -> None:
    """Delete what was compiled for a run that has finished."""
    shutil.rmtree(cache_folder() / "compiled" / run, ignore_errors=True)
