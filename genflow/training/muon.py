"""Muon: momentum SGD whose update matrices are orthogonalized.

    M <- mu M + G,    U = NewtonSchulz(G + mu M) ~ the nearest semi-orthogonal matrix,    W <- W - lr s U

with s = sqrt(max(1, rows / columns)). `torch.optim.Muon` takes 2-D parameters only; here a convolution is
the matrix (out, in k k), and matrices of equal shape are orthogonalized together in batched products.

References:
    Muon: an optimizer for hidden layers (Jordan et al., 2024)   https://kellerjordan.github.io/posts/muon/
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from genflow.training.fsdp import full_tensor, shard_like
from genflow.training.precision import multiplies_bfloat16

LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315  # Jordan's a, b, c


class Muon(torch.optim.Optimizer):
    """The optimizer.

    Args:
        params: weights with at least two dimensions; the first is the output.
        lr: step size; 0.01 to 0.02 suits small nets.
        momentum: mu.
        weight_decay: decoupled, multiplied by lr.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape[0], p.numel() // p.shape[0]].append(p)
            for shape, params in by_shape.items():
                self._move(params, shape, group["lr"], group["momentum"], group["weight_decay"])

    def _move(self, params: list[Tensor], shape: tuple[int, int], lr: float, mu: float, decay: float) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        buffers = []
        for p in params:
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            buffers.append(state["momentum"])
        torch._foreach_mul_(buffers, mu)
        torch._foreach_add_(buffers, grads)
        ahead = torch._foreach_add(grads, buffers, alpha=mu)
        updates = orthogonalize(torch.stack([full_tensor(g).reshape(shape) for g in ahead]))
        if decay:
            torch._foreach_mul_(params, 1 - lr * decay)
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        moves = [shard_like(u.reshape(p.shape), p) for u, p in zip(updates.float(), params, strict=True)]
        torch._foreach_add_(params, moves, alpha=-lr * scale)


def orthogonalize(G: Tensor, steps: int = 5) -> Tensor:
    """The semi-orthogonal matrices near G (N, rows, columns), by Newton-Schulz with Jordan's coefficients.

        X <- (a I + b A + c A^2) X,    A = X X'

    Singular values end between 0.7 and 1.2, which is close enough to 1; bfloat16 is used where it is fast.
    """
    fast = multiplies_bfloat16(G.device)
    X = G.bfloat16() if fast else G.float()
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = X.mT
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if not fast and 2 * X.shape[-2] <= X.shape[-1]:
        X = _factor(X @ X.mT, steps) @ X
    else:
        for _ in range(steps):
            A = X @ X.mT
            X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=CUBIC, alpha=QUINTIC), X, beta=LINEAR)
    return X.mT if tall else X


def _factor(A: Tensor, steps: int) -> Tensor:
    """The product of all steps' factors, from the first A (N, rows, rows) alone.

    All factors are polynomials of the first A, so they commute, and a step turns A into P A P. For a convolution of
    3 x 3 this is less than two fifths of the multiplications. It needs float32: in bfloat16 an eigenvalue near 0
    can become negative, and the steps enlarge it.
    """
    Q = P = _step(A)
    for _ in range(steps - 1):
        A = P @ (P @ A)
        P = _step(A)
        Q = Q @ P
    return Q


def _step(A: Tensor) -> Tensor:
    """a I + b A + c A^2."""
    P = torch.baddbmm(A, A, A, beta=CUBIC, alpha=QUINTIC)
    P.diagonal(dim1=-2, dim2=-1).add_(LINEAR)
    return P
