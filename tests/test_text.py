"""Captions as a condition: rows, padding, and the empty caption."""

import pytest
import torch
from support.small import captions

from genflow.text import Text


def equal(a: Text, b: Text) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "mask", "pooled"))


def test_without_a_condition_every_caption_is_the_empty_one() -> None:
    """`unconditional` equals the empty caption in every row, and so does `dropped` in the rows that it drops."""
    text, drop = captions([1, 2, 3]), torch.tensor([False, True, True])
    assert equal(text.unconditional(), captions([0, 0, 0]))
    assert equal(text.dropped(drop), captions([1, 0, 0]))
    assert equal(text.dropped(drop).unconditional(), captions([0, 0, 0]))
    empty = captions([0]).empty
    assert empty is not None
    assert equal(empty.unconditional(), empty)


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([1, 2]), torch.tensor([False, True, True])])
def test_rows_are_selected_as_those_of_labels_are(index: slice | torch.Tensor) -> None:
    """A slice, numbers and a mask select the same rows; a row keeps its own negative prompt."""
    text = captions([1, 2, 3])
    assert equal(text[index], captions([2, 3]))
    assert equal(text[index].unconditional(), captions([0, 0]))
    assert equal(text.against(captions([5, 6, 7])).rows(index).unconditional(), captions([6, 7]))
    assert [len(part) for part in captions(list(range(5))).split(2)] == [2, 2, 1]


def test_a_negative_prompt_stands_in_the_place_of_the_empty_caption() -> None:
    """One for all rows or one for each; it may be longer; another number is an error."""
    text = captions([1, 2])
    assert equal(text.against(captions([5])).unconditional(), captions([5, 5]))
    assert equal(text.against(captions([5, 6])).unconditional(), captions([5, 6]))
    longer = text.against(captions([5]).padded(9))
    assert equal(longer.unconditional(), captions([5, 5]).padded(9))
    assert equal(longer, text.padded(9))
    with pytest.raises(ValueError, match="3 negative prompts for 2 captions"):
        text.against(captions([1, 2, 3]))


def test_captions_of_several_lengths_are_joined() -> None:
    """`cat` pads to the longest; what stands for the empty caption stays that of each row."""
    joined = Text.cat([captions([1]).padded(7), captions([2, 3])])
    assert equal(joined, captions([1, 2, 3]).padded(7))
    assert equal(joined.unconditional(), captions([0, 0, 0]).padded(7))
    mixed = Text.cat([captions([1]), captions([2, 3]).against(captions([9]))])
    assert equal(mixed.unconditional(), captions([0, 9, 9]))
    assert equal(mixed[1:], captions([2, 3]))
    with pytest.raises(ValueError, match="captions of 7 tokens cannot be padded to 4"):
        joined.padded(4)


def test_the_empty_caption_follows_to_another_device() -> None:
    """`to` moves both."""
    moved = captions([1, 2]).to("meta")
    assert moved.device == moved.unconditional().device == torch.device("meta")


def test_between_two_captions() -> None:
    """The ends have the bits of the captions; in between every token of both has weight."""
    a, b = captions([1] * 3), captions([2] * 3).padded(9)
    text = a.between(b, torch.tensor([0.0, 0.25, 1.0]))
    for row, end in ((0, a.padded(9)), (2, b)):
        assert torch.equal(text.mask[row], end.mask[row])
        assert torch.equal(text.tokens[row][end.mask[row]], end.tokens[row][end.mask[row]])
        assert torch.equal(text.pooled[row], end.pooled[row])
    assert text.mask.sum(1).tolist() == [2, 3, 3]
    assert torch.equal(text.tokens[1, 2], 0.25 * b.tokens[1, 2])
    assert equal(text.unconditional(), a.padded(9).unconditional())
    with pytest.raises(ValueError, match="1 shares between 3 and 3 captions"):
        a.between(b, torch.tensor([0.5]))
