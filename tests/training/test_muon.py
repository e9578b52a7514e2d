"""Muon: updates are orthogonal matrices for gradients of any shape and scale."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genflow.training import muon
from genflow.training.muon import Muon, orthogonalize


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 8, 32), (1, 48, 12)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_singular_values_end_near_one(shape: tuple[int, ...], scale: float) -> None:
    """Wide, tall and square matrices of any scale; Jordan's coefficients give about 0.7 to 1.2."""
    values = torch.linalg.svdvals(orthogonalize(scale * normal(*shape)).float())
    assert values.min() > 0.5  # singular values near 0, as a square normal matrix has, converge more slowly
    assert values.max() < 1.25


def test_directions_are_kept() -> None:
    """The result is near the nearest semi-orthogonal matrix U V'."""
    G = normal(1, 24, 8)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    X = orthogonalize(G).float()
    assert float((X * (U @ Vh)).sum() / (X.norm() * (U @ Vh).norm())) > 0.98


@pytest.mark.parametrize("shape", [(2, 24, 24), (2, 16, 64), (1, 96, 24)])
def test_a_bfloat16_update_is_like_that_of_float32(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs orthogonalize in bfloat16 and most CPUs in float32; both take steps of about the same size and direction."""
    G, found = normal(*shape), {}
    for fast in (False, True):
        monkeypatch.setattr(muon, "multiplies_bfloat16", lambda device, fast=fast: fast)
        found[fast] = orthogonalize(G).float()
        assert orthogonalize(G).dtype == (torch.bfloat16 if fast else torch.float32)
    near = F.cosine_similarity(found[True].flatten(), found[False].flatten(), dim=0)
    assert float(near) > 0.99
    assert float(found[True].norm() / found[False].norm()) == pytest.approx(1, abs=0.03)


def test_wide_matrices_take_the_same_steps_by_their_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix with twice as many columns as rows takes the steps as a polynomial of X X', also where rows are equal
    or almost 0; the reference takes them one by one in float64."""
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda device: False)
    G = normal(3, 16, 144)
    G[1, 1] = G[1, 0]
    G[2, 8:] *= 1e-4
    X = G.double() / G.double().norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        A = X @ X.mT
        X = muon.LINEAR * X + muon.CUBIC * A @ X + muon.QUINTIC * A @ A @ X
    assert torch.allclose(orthogonalize(G).double(), X, atol=1e-4)


def test_the_size_of_an_update_is_the_learning_rate() -> None:
    """W <- W - lr sqrt(max(1, rows/columns)) U: the update's size does not depend on the gradient's."""
    for rows, columns in ((8, 8), (32, 8), (8, 32)):
        weight = nn.Parameter(torch.zeros(rows, columns))
        weight.grad = 1000 * normal(rows, columns)
        Muon([weight], lr=0.1).step()
        expected = 0.1 * max(1, rows / columns) ** 0.5 * min(rows, columns) ** 0.5
        assert float(weight.detach().norm()) == pytest.approx(expected, rel=0.2)


def test_matrices_of_equal_shape_are_updated_independently() -> None:
    """Batching changes no result; a convolution is the matrix (out, in k k)."""
    grads = [normal(6, 2, 3, 3, seed=1), normal(6, 2, 3, 3, seed=2), normal(6, 18, seed=3)]
    together = [nn.Parameter(torch.ones_like(g)) for g in grads]
    alone = [nn.Parameter(torch.ones_like(g)) for g in grads]
    one = Muon(together, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        for p, g in zip(together, grads, strict=True):
            p.grad = g.clone()
        one.step()
    for p, g in zip(alone, grads, strict=True):
        optimizer = Muon([p], lr=0.1, weight_decay=0.1)
        for _ in range(2):
            p.grad = g.clone()
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)  # Newton-Schulz in bfloat16


def test_a_zero_or_missing_gradient_changes_nothing() -> None:
    """There is no division by a zero norm."""
    still, without = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    still.grad = torch.zeros(4, 4)
    Muon([still, without], lr=0.1).step()
    assert torch.equal(still.detach(), torch.ones(4, 4))
    assert torch.equal(without.detach(), torch.ones(4, 4))


def test_the_loss_falls() -> None:
    """Least squares with two layers: the loss falls to a hundredth in 150 steps."""
    x = normal(64, 8)
    y = x @ normal(8, 4, seed=1)
    net = nn.Sequential(nn.Linear(8, 32, bias=False), nn.Linear(32, 4, bias=False))
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(0.2 * normal(*p.shape, seed=9 + i))
    optimizer = Muon(net.parameters(), lr=0.05)
    losses = []
    for step in range(150):
        loss = (net(x) - y).square().mean()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 150)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.01 * losses[0]
