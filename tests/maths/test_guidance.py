"""Classifier-free guidance wraps a net and counts its evaluations."""

import dataclasses

import pytest
import torch
from support.small import FACTS, captions, family, shaken

from genflow.maths.guidance import Guided, cat_labels, class_numbers, drop_labels, no_label
from genflow.maths.rng import BatchRng, SampleRng
from genflow.text import Text

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
    rng = BatchRng(0, "forget", 0)
    label = torch.arange(10_000) % CLASSES
    after = drop_labels(label, CLASSES, 0.1, rng)
    changed = after != label
    assert float(changed.float().mean()) == pytest.approx(0.1, abs=0.01)
    assert (after[changed] == CLASSES).all()
    none = torch.zeros(4, dtype=torch.long)
    assert drop_labels(none, 0, 0.1, BatchRng(0, "forget", 0)) is none


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


def of_text(x: torch.Tensor, t: torch.Tensor, text: Text) -> torch.Tensor:
    """Return x + the first number of the pooled caption."""
    return x + text.pooled[:, :1] + 0 * t[:, None]


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_a_negative_prompt_is_guidance_with_other_words(weight: float) -> None:
    """Without a negative prompt the line starts from the empty caption; with one it starts from that, in every row."""
    first = captions([0, 1, 2, 5, 6]).pooled[:, 0]
    for text, without in (
        (captions([1, 2]), first[:1]),
        (captions([1, 2]).against(captions([5])), first[3:4]),
        (captions([1, 2]).against(captions([5, 6])), first[3:]),
    ):
        guided = Guided(of_text, text, 0, weight)
        expected = without + weight * (first[1:3] - without)
        torch.testing.assert_close(guided(torch.zeros(2, 2), 500.0), expected[:, None].expand(2, 2))
        assert guided.nfe == (1 if weight == 1 else 2)


def test_a_family_is_guided_away_from_a_negative_prompt() -> None:
    """The sample of guidance 0 is that of the negative prompt; the empty caption as negative prompt changes nothing."""
    model, text = shaken(family("flow_matching", FACTS["captioned"], "mmdit"), 0.2), captions([1, 2])

    def draw(text: Text, guidance: float) -> torch.Tensor:
        rng = SampleRng([3, 4], "sample")
        return model.sample(rng.normal((2, 2, 4, 4)), text, rng, steps=3, guidance=guidance).x

    torch.testing.assert_close(draw(text.against(captions([5])), 0.0), draw(captions([5, 5]), 1.0))
    torch.testing.assert_close(draw(text, 0.0), draw(text.unconditional(), 1.0))
    assert torch.equal(draw(text.against(captions([0])), 3.0), draw(text, 3.0))
    assert not torch.allclose(draw(text.against(captions([5])), 3.0), draw(text, 3.0))


def test_a_share_of_captions_is_dropped() -> None:
    """The rows that become empty are those whose labels the same draws drop; all are with a share of 1, none with 0."""
    text, label = captions(list(range(1, 65))), torch.zeros(64, dtype=torch.long)

    def dropped(share: float) -> torch.Tensor:
        after = drop_labels(text, 0, share, BatchRng(0, "forget", 0))
        assert isinstance(after, Text)
        return (after.pooled == captions([0]).pooled).all(1)

    same = drop_labels(label, CLASSES, 0.3, BatchRng(0, "forget", 0)) == CLASSES
    assert torch.equal(dropped(0.3), same)
    assert 0 < int(same.sum()) < 64
    assert drop_labels(text, 0, 0.0, BatchRng(0, "forget", 0)) is text
    every, none = drop_labels(text, 0, 1.0, BatchRng(0, "forget", 0)), no_label(text, 0)
    assert isinstance(every, Text)
    assert isinstance(none, Text)
    assert all(torch.equal(getattr(every, part.name), getattr(none, part.name))
               for part in dataclasses.fields(Text) if part.name != "empty")  # fmt: skip


def test_labels_and_captions_have_the_same_helpers() -> None:
    """Of labels: tensors as ever. Captions have no class."""
    label = torch.tensor([0, 2])
    assert no_label(label, CLASSES).tolist() == [CLASSES] * 2
    assert cat_labels([label, label]).tolist() == [0, 2, 0, 2]
    assert class_numbers(label, CLASSES) is label
    assert class_numbers(captions([1, 2]), CLASSES).tolist() == [CLASSES] * 2
