"""What several workers of one run agree on: start weights, the checkpoint to resume from, and that none has failed.

Gradients are summed by the process group of the run's caller, with its short timeout: there a worker waits only as long
as a step takes. Everything here goes through a second group with a long timeout, because one worker may open its data,
read a checkpoint or save for minutes while the others wait. It exchanges objects on the CPU, also between GPUs.
"""

import contextlib
import datetime
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from genflow.errors import GenflowError
from genflow.maths.wide import wide

PATIENCE = datetime.timedelta(minutes=30)  # for work that only one worker does, such as saving
ANSWER = datetime.timedelta(seconds=5)  # for a worker that is not busy
ROUNDING = 0.01  # relative difference of weights that different processors may cause; more is a fault
BLOCK = 4096  # bytes of a GPU's tensor whose sum is hashed
LOST = ("gloo", "nccl", "connection closed", "connection reset", "timed out waiting")  # in messages of torch
T = TypeVar("T")


class WorkerError(RuntimeError):
    """A worker failed, is silent, or has other weights. Not the user's error, so the run may be tried again."""


class _Outcome(NamedTuple):
    """What a worker says after its part of some work: the error, or "", and whether the user must fix it."""

    error: str
    hint: str
    by_user: bool


class Workers:
    """The workers of a run.

    Args:
        rank: of this worker.
        world: the number of workers.
        control: the second process group; None for one worker.
    """

    def __init__(self, rank: int, world: int, control: Any = None) -> None:
        self.rank, self.world, self._control = rank, world, control

    def collect(self, value: T) -> list[T]:
        """The values of all workers, in the order of their ranks."""
        if self._control is None:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._control)
        return found

    def together(self, use: Callable[[], T]) -> T:
        """The result of `use`; if it fails on any worker, it fails on all of them.

        Raises:
            Exception: this worker's own error.
            GenflowError: the error of another worker that the user must fix.
            WorkerError: any other error of another worker.
        """
        if self._control is None:
            return use()
        own: Exception | None = None
        try:
            result = use()
        except Exception as error:
            own = error
        outcomes = self.collect(_outcome(own))
        if own is not None:
            raise own
        for rank, outcome in enumerate(outcomes):
            if outcome.error:
                text = f"worker {rank}: {outcome.error}"
                raise GenflowError(text, outcome.hint) if outcome.by_user else WorkerError(text)
        return result

    def adopt(self, tensors: Mapping[str, Tensor]) -> float:
        """Copy worker 0's tensors to all workers, unless they are equal to the bit.

        Args:
            tensors: the same names on every worker; shards are not copied.

        Returns:
            The largest difference of a worker's tensors before, relative to the norm of those of worker 0; infinite
            if one has a NaN where the other has a number.
        """
        if self._control is None or len(set(self.collect(digest(tensors)))) == 1:
            return 0.0
        apart = norm = 0.0
        for tensor in tensors.values():
            theirs = tensor.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(theirs, 0, group=None if theirs.is_cuda else self._control)
            ours, first = wide(tensor.detach()), wide(theirs)
            apart += float(torch.where(ours.isnan() & first.isnan(), 0, ours - first).square().sum())
            norm += float(first.nan_to_num().square().sum())
            with torch.no_grad():
                tensor.copy_(theirs)
        return max(self.collect((apart / max(norm, 1e-30)) ** 0.5 if not math.isnan(apart) else math.inf))

    def silent(self) -> list[int]:
        """The other workers that do not answer within seconds; called by those whose sum of gradients failed."""
        mask, others = torch.zeros(self.world), [rank for rank in range(self.world) if rank != self.rank]
        if self.rank:
            found = [] if self._answers(0, mask) else [0]
            return found or [rank for rank in others if mask[rank]]
        for rank in others:
            mask[rank] = not self._answers(rank, torch.zeros(1))
        for rank in others:
            if not mask[rank]:
                with contextlib.suppress(RuntimeError):
                    dist.isend(mask, rank, group=self._control)
        return [rank for rank in others if mask[rank]]

    def _answers(self, rank: int, into: Tensor) -> bool:
        """Whether a worker sends a tensor soon. The first worker asks the others, and then sends them the result."""
        try:
            if self.rank:
                dist.isend(torch.zeros(1), rank, group=self._control)
            work = dist.irecv(into, rank, group=self._control)
            assert work is not None
            work.wait(ANSWER * (self.world if self.rank else 1))
        except RuntimeError:
            return False
        return True


@contextlib.contextmanager
def connected(rank: int, world: int) -> Iterator[Workers]:
    """The workers of a run, within the block.

    Raises:
        WorkerError: the connection to another worker failed within the block; the message says which.
    """
    if world == 1:
        yield Workers(0, 1)
        return
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    workers = Workers(rank, world, control)
    try:
        yield workers
    except RuntimeError as error:
        if not is_lost(error):
            raise
        silent = workers.silent()
        which = f"worker {', '.join(map(str, silent))} does" if silent else "another worker does"
        which = which.replace("does", "do") if len(silent) > 1 else which
        raise WorkerError(f"{which} not answer: it hangs, or it has died") from error
    finally:
        dist.destroy_process_group(control)


def is_lost(error: RuntimeError) -> bool:
    """Whether an error says that the connection to another worker failed."""
    if isinstance(error, WorkerError | GenflowError):
        return False
    words = str(error).lower()
    return isinstance(error, dist.DistError) or any(sign in words for sign in LOST)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of tensors: on the CPU of all bytes, on a GPU of the sums of blocks, which are copied once."""
    found = hashlib.sha256(str(list(tensors)).encode())
    sums = []
    for tensor in tensors.values():
        part = tensor.detach().contiguous().view(-1).view(torch.uint8)
        if part.device.type == "cpu":
            found.update(part.numpy().data)
        else:
            sums += [block.sum(1, dtype=torch.int64) for block in _blocks(part)]
    if sums:
        found.update(torch.cat(sums).cpu().numpy().data)
    return found.hexdigest()[:16]


def _blocks(part: Tensor) -> list[Tensor]:
    whole = len(part) // BLOCK * BLOCK
    return [part[:whole].view(-1, BLOCK), part[whole:].view(1, -1)]


def _outcome(error: Exception | None) -> _Outcome:
    if error is None:
        return _Outcome("", "", False)
    if isinstance(error, GenflowError):
        return _Outcome(error.message, error.hint, True)
    first = (str(error).splitlines() or [""])[0]
    return _Outcome(f"{type(error).__name__}: {first} (on {os.uname().nodename})", "", False)
