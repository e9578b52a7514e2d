"""Layers, batches and threads for which the bits of a row do not depend on the other rows: alone and in company.

On a CPU, fp32: a linear layer rounds 1 to 15 vectors differently from more, and torch convolves one small picture by
another algorithm. Threads share the rows of a product, and round some numbers of rows differently from one thread. All
that was measured is in docs/decisions/0010-how-samples-are-served.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from genflow.nets.convolutions import Enlarge, Pointwise, convolve

VECTORS = 16  # that a linear layer is evaluated on at least
ON_GPUS = 16  # batches are multiples of so many rows
THREADS = (1, 2, 4)  # with 3 and with more no numbers of rows were found that round as on one thread


class RowLinear(nn.Linear):
    """A linear layer that is never evaluated on fewer than `VECTORS` vectors."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        if (rows := x.shape[:-1].numel()) >= VECTORS or not rows:
            return super().forward(x)
        vectors = x.reshape(rows, -1)
        if rows == 1:
            vectors = vectors.expand(VECTORS, -1)  # the product reads one vector, and nothing is copied
        else:
            vectors = torch.cat([vectors, vectors[-1:].expand(VECTORS - rows, -1)])
        return super().forward(vectors)[:rows].reshape(*x.shape[:-1], -1)


class RowConv(nn.Conv2d):
    """A convolution of more than one pixel that rounds one picture as it rounds several; see `convolve`."""

    def forward(self, x: Tensor) -> Tensor:
        rules: tuple[Any, ...] = self.stride, self.padding, self.dilation, self.groups
        return convolve(x, self.weight, self.bias, *rules)


class RowEnlarge(Enlarge, RowConv):
    """An `Enlarge` as a `RowConv`, with a kernel that is computed once."""

    kernel: Tensor

    def enlarging(self) -> Tensor:
        is_fixed = not self.weight.requires_grad and not torch.compiler.is_compiling()
        return self.kernel if is_fixed else super().enlarging()


def make_equal(module: nn.Module) -> None:
    """Let the layers of a module give a row the same bits in any number of rows; see `least`.

    Its weights may no longer change or move to another device.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = RowLinear
        elif type(layer) is nn.Conv2d and layer.kernel_size != (1, 1):
            layer.__class__ = RowConv
        elif type(layer) is Enlarge:
            layer.kernel = layer.enlarging().detach()
            layer.__class__ = RowEnlarge


def least(module: nn.Module, device: str) -> int:
    """On one thread batches of a multiple of so many rows have the same bits for a row, after `make_equal`."""
    if torch.device(device).type != "cpu":
        return ON_GPUS
    others = (layer for layer in module.modules() if not isinstance(layer, (RowConv, Pointwise)))
    return 2 if any(isinstance(layer, _ConvNd) for layer in others) else 1


def fit(rows: int, unit: int, allowed: int) -> tuple[int, int]:
    """Up to how many rows a batch is filled, and the number of threads that take the least time for it.

    Args:
        rows: of the batch.
        unit: `least` of the net, or more.
        allowed: threads at most.
    """
    numbers = [number for number in THREADS if number <= allowed]
    threads = min(numbers, key=lambda number: _filled(rows, unit, number) / number)
    return _filled(rows, unit, threads), threads


def _filled(rows: int, unit: int, threads: int) -> int:
    if threads == 4:  # powers of two round as on one thread; 28 and 80 rows do not
        return max(1 << (rows - 1).bit_length(), unit, 8)
    if threads == 2:  # multiples of 4 do; 5, 6, 7 and 10 rows do not
        unit = max(unit, 4)
    return -(-rows // unit) * unit


@contextmanager
def restored_threads() -> Iterator[None]:
    """Restore torch's number of threads at the end."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
