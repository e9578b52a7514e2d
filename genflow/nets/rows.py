"""Layers whose bits for a row do not depend on the number of rows, so that a sample is the same alone and in company.

On a CPU, fp32: a linear layer rounds 1 to 3 vectors differently from more, and a convolution one picture differently
from more. The table of all kernels is in docs/decisions/0010-how-samples-are-served.md.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

VECTORS = 4  # that a linear layer is evaluated on at least
# Batches are multiples of so many rows for so many threads, without and with convolutions. Threads share the rows of a
# product, so that each thread has fewer of them. More threads were not measured, and get the rows that GPUs get.
ROWS, OTHERS = {1: (1, 2), 2: (4, 4)}, 16


class RowLinear(nn.Linear):
    """A linear layer that is never evaluated on fewer than `VECTORS` vectors."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        if (rows := x.shape[:-1].numel()) >= VECTORS or not rows:
            return super().forward(x)
        vectors = x.reshape(rows, -1)
        vectors = torch.cat([vectors, vectors[-1:].expand(VECTORS - rows, -1)])
        return super().forward(vectors)[:rows].reshape(*x.shape[:-1], -1)


def make_equal(module: nn.Module) -> None:
    """Let the linear layers of a module give a row the same bits in any number of rows."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = RowLinear


def least(module: nn.Module, device: str) -> int:
    """Batches of a multiple of so many rows have the same bits for a row, after `make_equal`."""
    threads = torch.get_num_threads()
    if torch.device(device).type != "cpu" or threads not in ROWS:
        return OTHERS
    return ROWS[threads][any(isinstance(layer, _ConvNd) for layer in module.modules())]
