"""Checkpoints of sharded nets: every worker writes its own shards, while training continues (torch's DCP).

    checkpoints/step_00001000/  shard-00001-model-00001-of-00001.safetensors  ...-00002-...  state.json  manifest.json

A file holds the shards of one worker: of the weights, of their averages and of the optimizers' states, under the names
`weights/...`, `ema/...` and `optimizer/...`. Each shard has its offset in the whole tensor, so any number of workers
can read the files, and also a worker that holds the whole net.

To save, a worker copies its shards to the CPU, and a second thread writes them. The first worker gives the files the
name of a checkpoint once all workers have theirs on the disk. No worker ever holds the state of the whole net.

References:
    PyTorch Distributed Checkpoint   https://docs.pytorch.org/docs/stable/distributed.checkpoint.html
"""

import contextlib
import json
import threading
import warnings
from collections import ChainMap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genflow.storage.files import explain_disk_errors
from genflow.training.checkpoint import STATE, State, read_state, require_fit, wait_for_copies
from genflow.training.checkpoint_folders import Checkpoints
from genflow.training.fsdp import is_sharded
from genflow.training.workers import PATIENCE, Workers, is_lost

SHARD = "shard-{:05d}-"  # how the names of a worker's files begin; numbers begin at 1
SETTLE_S = 30.0  # after an error, a checkpoint that is being written may take so long
Optimizers = dict[str, torch.optim.Optimizer]
Tensors = dict[str, Tensor]
T = TypeVar("T")


def is_in(folder: Path) -> bool:
    """Whether a checkpoint holds shards, instead of whole tensors."""
    return next(folder.glob(f"{SHARD.format(1)}*"), None) is not None


class Saver:
    """Saves the checkpoints of a sharded net.

    Args:
        checkpoints: of the run.
        workers: of the run.
        group: a process group of its own on the CPU, because a second thread uses it.
    """

    def __init__(self, checkpoints: Checkpoints, workers: Workers, group: Any) -> None:
        self._checkpoints, self._workers, self._group = checkpoints, workers, group
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, module: nn.Module, average: Tensors, optimizers: Optimizers, state: State) -> None:
        """Begin a checkpoint; it exists some time later. Every worker must call this.

        Args:
            step: training steps so far.
            module: its parameters and persistent buffers are saved.
            average: the averaged parameters, by name.
            optimizers: by name.
            state: of the training so far.

        Raises:
            Exception: the checkpoint before this one could not be written; see `Workers.together`.
        """
        self.wait()
        first = self._workers.rank == 0
        own = self._workers.together(lambda: self._checkpoints.begin(step) if first else "")
        attempt = self._workers.collect(own)[0]
        tensors = to_cpu(_present(module, average, optimizers), replicas=first)
        self._thread = threading.Thread(
            target=self._write, args=(attempt, tensors, state), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Return once the last checkpoint exists. Every worker must call this.

        Raises:
            Exception: it could not be written; see `Workers.together`.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._workers.together(self._raise)

    def settle(self) -> None:
        """After an error of this worker: give the checkpoint that is being written some time."""
        if self._thread is not None:
            self._thread.join(SETTLE_S)

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _try(self, use: Callable[[], T]) -> T | None:
        """The result of `use`; None after an error, which `wait` raises, so that no worker waits for this one."""
        try:
            return use()
        except Exception as error:
            self._error = self._error or error
            return None

    def _write(self, attempt: str, tensors: Tensors, state: State) -> None:
        """In the second thread: write this worker's files; the first worker then commits those of all."""

        def together() -> None:
            if None in self._collect(self._try(lambda: self._checkpoints.folder_of(attempt))):
                return
            names = self._try(lambda: self._write_shards(self._checkpoints.folder_of(attempt), tensors, state))
            own = self._try(lambda: None if names is None else self._checkpoints.add(attempt, names))
            files = self._collect(own)
            if self._workers.rank == 0 and None not in files:
                self._try(lambda: self._checkpoints.commit(attempt, dict(ChainMap(*(each or {} for each in files)))))
            dist.barrier(group=self._group)  # another worker must not delete files that the first one renames
            self._checkpoints.abandon(attempt)

        self._try(together)

    def _collect(self, value: T) -> list[T]:
        found: list[Any] = [None] * self._workers.world
        dist.all_gather_object(found, value, group=self._group)
        return found

    def _write_shards(self, folder: Path, tensors: Tensors, state: State) -> list[str] | None:
        """Write this worker's files, and return their names; None if only another worker failed."""
        from torch.distributed.checkpoint import HuggingFaceStorageWriter, save
        from torch.distributed.checkpoint.api import CheckpointException

        rank = self._workers.rank
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        with explain_disk_errors(folder):
            try:
                save(tensors, storage_writer=writer, process_group=self._group)
            except CheckpointException as error:
                if rank not in error.failures:
                    return None
                raise error.failures[rank][0] from None
            if rank == 0:
                (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
        names = [file.name for file in folder.glob(f"{SHARD.format(rank + 1)}*")]
        return names if rank else [STATE, *names]


@contextlib.contextmanager
def saver(checkpoints: Checkpoints | None, workers: Workers, *, sharded: bool) -> Iterator[Saver | None]:
    """A `Saver` within the block; None if nothing is sharded or saved. Every worker must call this."""
    if not sharded or checkpoints is None:
        yield None
        return
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    made = Saver(checkpoints, workers, group)
    try:
        yield made
    except Exception as error:
        if not (isinstance(error, RuntimeError) and is_lost(error)):
            made.settle()
        raise
    dist.destroy_process_group(group)


def read(folder: Path, module: nn.Module, average: Tensors, optimizers: Optimizers) -> State:
    """Load what a `Saver` saved, in place; return the state. A sharded net loads its shards, any other the whole.

    Args:
        folder: of the checkpoint.
        module: of the same net; the number of workers, and whether it is sharded, may differ.
        average: the averaged parameters, by name.
        optimizers: by name.

    Raises:
        DataError: the weights do not fit the net.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    reader = HuggingFaceStorageReader(str(folder))
    known: dict[str, Any] = reader.read_metadata().state_dict_metadata
    sizes = {name: tuple(each.size) for name, each in known.items()}
    weights = {name.removeprefix("weights/"): size for name, size in sizes.items() if name.startswith("weights/")}
    require_fit(folder, module, weights)
    state = _present(module, average, {})
    documents = {}
    for name, optimizer in optimizers.items():
        document = documents[name] = optimizer.state_dict()
        document["state"] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for key in known:
            if key.startswith(f"optimizer/{name}/"):
                _, _, index, slot = key.split("/")
                like = parameters[int(index)].detach()
                fits = sizes[key] == tuple(like.shape)
                dtype = known[key].properties.dtype
                state[key] = torch.empty_like(like, dtype=dtype) if fits else torch.empty(sizes[key], dtype=dtype)
                document["state"].setdefault(int(index), {})[slot] = state[key]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it does not communicate, which is wanted
        load(state, storage_reader=reader, no_dist=True)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(documents[name])
    return read_state(folder)


def to_cpu(tensors: Tensors, *, replicas: bool) -> Tensors:
    """Copies on the CPU, for which a worker waits once; shards stay shards.

    Args:
        tensors: by name.
        replicas: whether to copy also those that are not sharded.
    """
    copied, devices = {}, set()
    for name, tensor in tensors.items():
        if replicas or is_sharded(tensor):
            own = tensor.detach().contiguous()
            copied[name] = own.to("cpu", copy=True, non_blocking=True)
            devices.add(own.device)
    wait_for_copies(devices)
    return copied


def _present(module: nn.Module, average: Tensors, optimizers: Optimizers) -> Tensors:
    """The tensors of a run as they are now, by their names in a checkpoint."""
    found = {f"weights/{name}": tensor for name, tensor in module.state_dict().items()}
    found |= {f"ema/{name}": tensor for name, tensor in average.items()}
    for name, optimizer in optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            found |= {f"optimizer/{name}/{index}/{slot}": torch.as_tensor(value) for slot, value in values.items()}
    return found
