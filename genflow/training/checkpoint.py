"""A checkpoint's content: weights, averages, optimizers and clock, as safetensors and JSON, never pickle.

A run whose net is sharded writes other files until its end (see `sharded_checkpoint`). `checkpoint_folders` gives the
folder in which these files are written.
"""

import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genflow.errors import DataError
from genflow.training import fsdp
from genflow.training.fsdp import full_tensor, shard_like

STATE = "state.json"
WEIGHTS = "weights.safetensors"
READ_BY_SAMPLING = (WEIGHTS, "ema.safetensors", STATE)


class State(TypedDict):
    """The content of state.json. An export has only `step` and `run`.

    Args:
        step: training steps.
        images: training rows seen, over all workers.
        seconds: wall-clock seconds of training, over all attempts.
        cpu_seconds: CPU seconds of one worker, over all attempts.
        parameters: of all nets.
        rollbacks: how often the learning rate was halved after a divergence.
        moments: the held-out losses so far, a `MomentsState`; absent in a checkpoint of an older version.
        run: the run's id; only in an export.
    """

    step: int
    images: NotRequired[int]
    seconds: NotRequired[float]
    cpu_seconds: NotRequired[float]
    parameters: NotRequired[int]
    rollbacks: NotRequired[int]
    moments: NotRequired[Any]
    run: NotRequired[str]


Tensors = dict[str, dict[str, Tensor]]  # by file


def gather(
    module: nn.Module, average: dict[str, Tensor], optimizers: dict[str, torch.optim.Optimizer], *, keep: bool = True
) -> Tensors:
    """A run's tensors, on the CPU. If the module is sharded, every worker must call this.

    Args:
        module: its parameters and persistent buffers are saved.
        average: the averaged parameters, by name.
        optimizers: by name; their tensors are saved as `name/parameter/slot`.
        keep: whether this worker keeps the tensors.
    """
    found: Tensors = {"weights": module.state_dict(), "ema": average, "optimizer": {}}
    for name, optimizer in optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            for slot, value in values.items():
                found["optimizer"][f"{name}/{index}/{slot}"] = torch.as_tensor(value)
    made: Tensors = {file: {} for file in found}
    devices = set()
    for file, tensors in found.items():
        for name, tensor in tensors.items():
            full = full_tensor(tensor.detach())  # one at a time: all of them may not fit on the device
            if keep:
                made[file][name] = full.contiguous().to("cpu", non_blocking=True)
                devices.add(full.device)
    wait_for_copies(devices)
    return made


def wait_for_copies(devices: set[torch.device]) -> None:
    """Wait once for all copies from devices that do not wait (`non_blocking`)."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()


def write(folder: Path, tensors: Tensors, state: State) -> None:
    """Write a run's state into a folder.

    Args:
        folder: an empty folder.
        tensors: the result of `gather`.
        state: of the training so far.
    """
    for file, own in tensors.items():
        save_file(own, folder / f"{file}.safetensors")
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")


def read_state(folder: Path) -> State:
    """The state that `write` saved, without the tensors."""
    state: State = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state


def read(
    folder: Path, module: nn.Module, optimizers: dict[str, torch.optim.Optimizer], device: str = "cpu"
) -> tuple[dict[str, Tensor], State]:
    """Load what `write` saved; return the average and the state. A sharded module loads its shards.

    Raises:
        DataError: the weights do not fit the net.
    """
    fsdp.load(module, _matching_weights(folder, module, device))
    slots = load_file(folder / "optimizer.safetensors")
    for name, optimizer in optimizers.items():
        document = optimizer.state_dict()
        document["state"] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for key, value in slots.items():
            owner, index, slot = key.split("/")
            if owner == name:
                like = parameters[int(index)]
                own = shard_like(value, like) if value.shape == like.shape else value
                document["state"].setdefault(int(index), {})[slot] = own
        optimizer.load_state_dict(document)
    return load_file(folder / "ema.safetensors", device=device), read_state(folder)


def load_weights(folder: Path, module: nn.Module, *, average: bool = True) -> State:
    """Load only what sampling needs, the averaged or the raw weights; return the state.

    Raises:
        DataError: the weights do not fit the net.
    """
    module.load_state_dict(_matching_weights(folder, module))
    if average and (folder / "ema.safetensors").exists():  # an export has the average alone
        module.load_state_dict(load_file(folder / "ema.safetensors"), strict=False)
    return read_state(folder)


def _matching_weights(folder: Path, module: nn.Module, device: str = "cpu") -> dict[str, Tensor]:
    """A checkpoint's weights, if their names and shapes are those of the net.

    Raises:
        DataError: they are not; see `require_fit`.
    """
    weights = load_file(folder / WEIGHTS, device=device)
    require_fit(folder, module, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    return weights


def require_fit(folder: Path, module: nn.Module, found: dict[str, tuple[int, ...]]) -> None:
    """Check that a checkpoint's weights have the names and shapes of a net's.

    Raises:
        DataError: they do not, for example because an older genflow built another net from the same recipe.
    """
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if other := [name for name in {**own, **found} if own.get(name) != found.get(name)]:
        name = other[0]
        raise DataError(
            f"{folder}: {len(other)} tensors do not fit the net that this genflow builds from the recipe: {name} "
            f"is {found.get(name, 'missing')}, not {own.get(name, 'a part of it')}",
            "retrain it, or use the version of genflow that wrote it",
        )
