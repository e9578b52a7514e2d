"""Buckets: the sum over workers is that of whole gradients, and most of it is under way before backward has ended."""

from pathlib import Path

import pytest
import torch
from support.pair import two_workers
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


def test_buckets_are_summed_while_backward_goes_on(tmp_path: Path) -> None:
    """With a layer that has no part in the loss; step after step; both workers hold the same bits."""
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


def test_a_bucket_is_neither_a_crumb_nor_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters stay in their order; one that is larger than a bucket has one alone."""
    monkeypatch.setattr(all_reduce, "MIN_BUCKET_BYTES", 100)
    monkeypatch.setattr(all_reduce, "MAX_BUCKET_BYTES", 200)
    sizes = (10, 10, 10, 100, 30, 30)
    made = all_reduce._buckets([nn.Parameter(torch.zeros(n)) for n in sizes])
    assert [[p.numel() for p in bucket] for bucket in made] == [[10, 10], [10], [100], [30], [30]]


def test_one_worker_clips_and_sums_nothing() -> None:
    """Its norm is what it was before."""
    net = nn.Linear(3, 1, bias=False)
    own = Gradients(net, 1)
    net(torch.tensor([[3.0, 4.0, 0.0]])).sum().backward()
    assert own.reduce_and_clip(1.0) == pytest.approx(5.0)
    assert net.weight.grad is not None
    torch.testing.assert_close(net.weight.grad, torch.tensor([[0.6, 0.8, 0.0]]))
