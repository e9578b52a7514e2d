"""All-reduce the gradients of several workers in buckets, each as soon as backward has filled it.

Backward computes the last layers' gradients first, so their sum overlaps with the backward pass of the first layers.

References:
    PyTorch Distributed (Li et al., 2020), section 3.2   https://arxiv.org/abs/2006.15704
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MIN_BUCKET_BYTES = 1 << 20  # below, a message costs more than its content
MAX_BUCKET_BYTES = 25 << 20  # above, no sum overlaps with backward
BUCKETS = 16  # buckets of a net, within those limits


class Gradients:
    """The gradients of one player of a family.

    Args:
        module: the player.
        world: workers; each contributes its share of the mean, so the sum is the gradient of the whole batch.

    Attributes:
        factor: by which a worker multiplies its loss.
        complete: whether the next backward pass completes the gradients of a step; only then are they summed.
    """

    def __init__(self, module: nn.Module, world: int) -> None:
        self.factor = 1
        self.complete = True
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._buckets = _buckets(self._parameters[::-1]) if world > 1 else []
        self._missing: list[int] = []
        self._pending: list[tuple[Any, Tensor, list[Tensor]]] = []
        self._reset()
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(self._hook_for(number))

    def reduce_and_clip(self, clip: float) -> float:
        """Wait for the sums, clip them to the norm `clip`, and return the norm before; the same on every worker."""
        while len(self._pending) < len(self._buckets):  # some parameters had no gradient
            self._launch_next()
        for work, flat, grads in self._pending:
            if work is not None:
                work.wait()
                parts = flat.split([g.numel() for g in grads])
                torch._foreach_copy_(grads, [part.view_as(g) for part, g in zip(parts, grads, strict=True)])
        self._reset()
        grads = [p.grad for p in self._parameters if p.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
        if math.isfinite(norm) and norm > clip:
            torch._foreach_mul_(grads, clip / norm)
        return norm

    def _reset(self) -> None:
        self._missing = [len(bucket) for bucket in self._buckets]
        self._pending = []

    def _hook_for(self, number: int) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            if not self.complete:
                return
            self._missing[number] -= 1
            while len(self._pending) < len(self._buckets) and not self._missing[len(self._pending)]:
                self._launch_next()

        return hook

    def _launch_next(self) -> None:
        """Start the all-reduce of the next bucket; the order is fixed, so that all workers reduce the same bucket."""
        grads = [p.grad for p in self._buckets[len(self._pending)] if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads]) if grads else torch.empty(0)
        self._pending.append((dist.all_reduce(flat, async_op=True) if grads else None, flat, grads))


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Split the parameters, in their order, into lists of about the same size in bytes."""
    sizes = [p.numel() * p.element_size() for p in parameters]
    limit = min(MAX_BUCKET_BYTES, max(MIN_BUCKET_BYTES, sum(sizes) // BUCKETS))
    made: list[list[nn.Parameter]] = []
    room = 0
    for parameter, size in zip(parameters, sizes, strict=True):
        if size > room or not made:
            made.append([])
            room = limit
        made[-1].append(parameter)
        room -= size
    return made
