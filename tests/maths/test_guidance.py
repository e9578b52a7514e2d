"""Classifier-free guidance wraps a net and counts its evaluations."""

import pytest
import torch

from genflow.maths.guidance import Guided, drop_labels
from genflow.maths.rng import BatchRng

CLASSES = 3


def net(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return x + label, and x + 10 for "no label"."""
    value = torch.where(label == CLASSES, 10, label).to(x.dtype)
    return x + value[:, None] + 0 * t[:, None]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_guidance_is_the_line_through_both_predictions(weight: float) -> None:
    """The result is p(no label) + w (p(label) - p(no label)) per row; w = 1 takes one evaluation, other weights two."""
    label = torch.tensor([0, 2, CLASSES])
    guided = Guided(net, label, CLASSES, weight)
    answer = guided(torch.zeros(3, 2), 500.0)
    expected = torch.tensor([10 + weight * (0 - 10), 10 + weight * (2 - 10), 10.0])
    torch.testing.assert_close(answer, expected[:, None].expand(3, 2))
    assert guided.nfe == (1 if weight == 1 else 2)


def test_a_share_of_labels_is_dropped() -> None:
    """About that share becomes "no label" and the others stay; without classes nothing changes."""
    rng = BatchRng(0, "forget", 0, total=10_000)
    label = torch.arange(10_000) % CLASSES
    after = drop_labels(label, CLASSES, 0.1, rng)
    changed = after != label
    assert float(changed.float().mean()) == pytest.approx(0.1, abs=0.01)
    assert (after[changed] == CLASSES).all()
    none = torch.zeros(4, dtype=torch.long)
    assert drop_labels(none, 0, 0.1, BatchRng(0, "forget", 0, total=4)) is none


def test_outside_its_interval_guidance_costs_nothing() -> None:
    """Outside the interval the prediction is unguided and takes one evaluation; this holds per row, too."""
    label = torch.tensor([0, 2])
    guided = Guided(net, label, CLASSES, 3.0)
    plain = guided(torch.zeros(2, 2), 500.0, False)
    torch.testing.assert_close(plain, torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
    assert guided.nfe == 1
    mixed = guided(torch.zeros(2, 2), torch.tensor([500.0, 10.0]), torch.tensor([True, False]))
    torch.testing.assert_close(mixed, torch.tensor([[10 + 3.0 * -10] * 2, [2.0, 2.0]]))
    assert guided.nfe == 3
