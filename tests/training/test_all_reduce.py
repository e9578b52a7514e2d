"""The all-reduced buckets equal the full gradient, and most of them start before backward has ended."""

from pathlib import Path

import pytest
import torch
from support.two_workers import two_workers
from torch import nn

from genflow.training import all_reduce
from genflow.training.all_reduce import Gradients

WORKER = """
from torch import nn
from genflow.training import all_reduce

all_reduce.MIN_BUCKET_BYTES = 300
torch.manual_seed(0)
net = nn.Sequential(*[nn.Linear(8, 8) for _ in range(7)])
torch.manual_seed(rank)
x = [torch.randn(5, 8) for _ in range(3)]
summed, found = all_reduce.Gradients(net, 2), []
for step in range(3):
    (net[1:](x[step]).square().mean() / 2).backward()
    early = len(summed._pending)
    norm = summed.reduce_and_clip(1e9)
    found.append((early, norm, [None if p.grad is None else p.grad.clone() for p in net.parameters()], x[step]))
    net.zero_grad()
torch.save((len(summed._buckets), found), f"{folder}/{rank}.pt")
"""


def test_buckets_are_reduced_during_backward(tmp_path: Path) -> None:
    """Over three steps, with a layer that gets no gradient; both workers have the same bits."""
    two_workers(WORKER, tmp_path)
    (buckets, first), (_, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert buckets >= 5
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(8, 8) for _ in range(7)])
    for (early, norm, ours, x), (_, other, theirs, y) in zip(first, second, strict=True):
        net.zero_grad()
        net[1:](torch.cat([x, y])).square().mean().backward()
        whole = [p.grad for p in net.parameters()]
        assert buckets - 2 <= early < buckets
        assert norm == other
        assert norm == pytest.approx(float(torch.stack([g.norm() for g in whole if g is not None]).norm()), rel=1e-5)
        for a, b, expected in zip(ours, theirs, whole, strict=True):
            if expected is None:
                assert a is b is None
            else:
                assert torch.equal(a, b)
                torch.testing.assert_close(a, expected)


def test_buckets_have_a_minimum_and_a_maximum_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters stay in their order; a parameter larger than a bucket gets its own bucket."""
    monkeypatch.setattr(all_reduce, "MIN_BUCKET_BYTES", 100)
    monkeypatch.setattr(all_reduce, "MAX_BUCKET_BYTES", 200)
    sizes = (10, 10, 10, 100, 30, 30)
    made = all_reduce._buckets([nn.Parameter(torch.zeros(n)) for n in sizes])
    assert [[p.numel() for p in bucket] for bucket in made] == [[10, 10], [10], [100], [30], [30]]


def test_one_worker_only_clips() -> None:
    """The returned norm is that before clipping."""
    net = nn.Linear(3, 1, bias=False)
    own = Gradients(net, 1)
    net(torch.tensor([[3.0, 4.0, 0.0]])).sum().backward()
    assert own.reduce_and_clip(1.0) == pytest.approx(5.0)
    assert net.weight.grad is not None
    torch.testing.assert_close(net.weight.grad, torch.tensor([[0.6, 0.8, 0.0]]))
