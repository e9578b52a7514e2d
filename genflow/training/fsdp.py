"""Shard nets that fit no single device (FSDP2): each worker holds a shard of every parameter.

A parameter, its gradient, its average and its optimizer state are sharded along the first dimension. A block of the net
is gathered before it is computed, and freed after it.

References:
    PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (Zhao et al., 2023)   https://arxiv.org/abs/2304.11277
"""

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def shard(module: nn.Module, device: torch.device, world: int) -> None:
    """Shard a module's parameters over the workers, block by block if it has blocks (see `blocks`).

    Args:
        module: has the same parameters on every worker.
        device: of the module.
        world: the number of workers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world,))
    for block in blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The members of module lists that have parameters of two or more dimensions; the innermost lists first."""
    found: dict[int, nn.Module] = {}
    for holder in module.modules():
        if isinstance(holder, nn.ModuleList):
            for block in holder:
                large = any(p.dim() > 1 for p in block.parameters())
                if large and not isinstance(block, nn.ModuleList):
                    found[id(block)] = block
    return list(found.values())[::-1]


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is sharded (a DTensor).

    This does not import torch.distributed.tensor, which takes a second: no DTensor exists before it is imported.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def full_tensor(tensor: Any) -> Tensor:
    """The whole tensor. If it is sharded, every worker must call this."""
    gathered: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return gathered


def shard_like(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor, sharded in the same way as `like`."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict` with whole tensors, into a module that may be sharded."""
    state = module.state_dict()
    module.load_state_dict({name: shard_like(tensor, state[name]) for name, tensor in tensors.items()})


class ShardedGradients:
    """The gradients of a sharded module: FSDP has averaged them already.

    Args:
        module: the player.
        world: workers; FSDP divides by this number, so each worker multiplies its loss by it (`factor`).

    Attributes:
        complete: whether the next backward pass completes the gradients of a step; each pass is summed in any case, so
            that no worker holds the gradients of a whole net.
    """

    def __init__(self, module: nn.Module, world: int) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.factor = world
        self.complete = True

    def reduce_and_clip(self, clip: float) -> float:
        """Clip the gradients to the norm `clip`, and return the norm before; the same on every worker."""
        grads = [p.grad for p in self._parameters if p.grad is not None]
        norm = _norm(grads)
        if math.isfinite(norm) and norm > clip:
            torch._foreach_mul_(grads, clip / norm)
        return norm


def _norm(grads: Iterable[Any]) -> float:
    local = [g.to_local() if is_sharded(g) else g for g in grads]
    squares = torch.stack(torch._foreach_norm(local)).square().sum()
    dist.all_reduce(squares)
    return float(squares.sqrt())
