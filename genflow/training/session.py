"""The environment of a training loop as a value: the loop knows its rank and its device, and nothing of Ray.

`jobs/runtime/train/worker.py` makes a session inside a Ray Train worker; a test makes one with a list.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from genflow.batch import Batch
    from genflow.training.checkpoint_folders import Checkpoints


def _ignore(*_: Any, **__: Any) -> None:
    return None


@dataclass
class Session:
    """The interface between `loop.fit` and its caller.

    Args:
        rank: this worker's number, 0..world-1.
        world: the number of workers.
        device: a torch device's name.
        sharded: whether each worker holds a shard of every parameter, instead of a copy.
        threads: CPU threads for this worker; 0 keeps torch's default.
        load: returns the newest verified checkpoint's folder, or None. Of several workers, the first one chooses.
        open: returns the verified checkpoint with the name that the first worker has chosen, or None if this worker
            does not see it; None: `load` must find the same one.
        save: `save(step, write)` commits the files that `write(folder)` writes; called on rank 0.
        shards: the run's checkpoints, to which every worker of a sharded net adds its own files; `save` then receives
            the whole tensors at the end alone. None: `save` receives them every time.
        barrier: called on every rank after a checkpoint.
        log: receives a dictionary of numbers; called on rank 0.
        watch: receives the same numbers and the seconds of each part of a step, for gauges; called on rank 0.
        held_out: returns groups of rows that training does not see, evenly spaced; None: there are none, or the family
            has no loss for them. Every worker gets all of them.
        draw: `draw(step, average, work)` shows samples of the averaged weights, or of the initial ones if `average` is
            None, with about `work` network evaluations of one row; called on rank 0. None: no samples.
        expect: receives the number of steps that the budget is expected to give; called on rank 0.
        validated: receives the step and the loss on held-out rows; called on rank 0.
        tick: receives the step and the used share of the budget after every step; called on rank 0.
        note: receives a line for the user; called on rank 0.
        should_stop: returns whether to save and end; several workers end at the next report.
    """

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    sharded: bool = False
    threads: int = 0
    load: Callable[[], Path | None] = field(default=_ignore)
    open: Callable[[str], Path | None] | None = None
    save: Callable[[int, Callable[[Path], None]], None] = field(default=_ignore)
    shards: "Checkpoints | None" = None
    barrier: Callable[[dict[str, Any]], None] = field(default=_ignore)
    log: Callable[[dict[str, Any]], None] = field(default=_ignore)
    watch: Callable[[dict[str, Any], dict[str, float]], None] = field(default=_ignore)
    held_out: "Callable[[int], Iterable[Batch]] | None" = None
    draw: "Callable[[int, dict[str, Tensor] | None, float], None] | None" = None
    expect: Callable[[int], None] = field(default=_ignore)
    validated: Callable[[int, float], None] = field(default=_ignore)
    tick: Callable[[int, float], None] = field(default=_ignore)
    note: Callable[[str], None] = field(default=_ignore)
    should_stop: Callable[[], bool] = field(default=bool)
