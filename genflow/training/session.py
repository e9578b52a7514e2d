"""Where a training loop runs, as a value: the loop knows its rank and its device, and nothing of Ray.

`jobs/train.py` makes one inside a Ray Train worker; a test makes one with a list.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def _nothing(*_: Any, **__: Any) -> None:
    return None


@dataclass
class Session:
    """The seam between `training.fit` and whatever runs it.

    Args:
        rank: this worker's number, 0..world-1.
        world: the number of workers.
        device: a torch device's name.
        sharded: whether each worker holds a share of every parameter, instead of a copy.
        threads: CPU threads for this worker; 0 leaves torch's own choice.
        load: the newest verified checkpoint's folder, or None.
        save: `save(step, write)` commits what `write(folder)` puts into a folder; called on rank 0.
        barrier: called on every rank after a checkpoint.
        log: takes a dictionary of numbers; called on rank 0.
        watch: takes the same, and the seconds of each part of a step, which nobody keeps; called on rank 0.
        should_stop: whether somebody asked the run to save and end; of several workers, at the next report.
    """

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    sharded: bool = False
    threads: int = 0
    load: Callable[[], Path | None] = field(default=_nothing)
    save: Callable[[int, Callable[[Path], None]], None] = field(default=_nothing)
    barrier: Callable[[dict[str, Any]], None] = field(default=_nothing)
    log: Callable[[dict[str, Any]], None] = field(default=_nothing)
    watch: Callable[[dict[str, Any], dict[str, float]], None] = field(default=_nothing)
    should_stop: Callable[[], bool] = field(default=bool)
