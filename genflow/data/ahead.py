"""The next batch is read while a step is computed: a second thread gathers it in memory from which a GPU copies."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from genflow.batch import Batch


class Ahead:
    """Batches by step, of which the next one is made in advance.

    On the CPU the thread would take the core that computes the step, so it is for other devices, and for pictures that
    must be decoded.

    Args:
        batches: makes the batch of a step; a function of the step alone.
    """

    def __init__(self, batches: "Callable[[int], Batch]") -> None:
        self._batches = batches
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[Batch]] | None = None

    def __call__(self, step: int) -> "Batch":
        """The batch of a step; an error of making it is raised here."""
        if self._next and self._next[0] == step:
            made = self._next[1]
        else:  # the first step, or the first one after a rollback
            made = self._thread.submit(self._batches, step)
        self._next = step + 1, self._thread.submit(self._batches, step + 1)
        return made.result()

    def close(self) -> None:
        """End the thread; call it when training has ended."""
        self._thread.shutdown(cancel_futures=True)


def ahead(batches: "Callable[[int], Batch]", device: str, *, decodes: bool = False) -> "Ahead | None":
    """`Ahead` for a device that computes without the CPU, and for batches that are decoded; else None."""
    return Ahead(batches) if decodes or device != "cpu" else None


def to_device(values: "np.ndarray", device: "torch.device | str") -> "torch.Tensor":
    """An array as a tensor on a device; a copy to a GPU is from pinned memory, for which the process need not wait."""
    import torch

    tensor, where = torch.from_numpy(values), torch.device(device)
    return tensor.pin_memory().to(where, non_blocking=True) if where.type == "cuda" else tensor.to(where)
