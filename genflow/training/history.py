"""The held-out losses of a training, as its checkpoints hold them."""

from collections.abc import Sequence
from typing import TypedDict


class Moment(TypedDict):
    """The held-out loss at a step.

    Args:
        step: training steps.
        position: the used share of the budget.
        losses: of each group of held-out rows.
    """

    step: int
    position: float
    losses: list[float]


def mean(values: Sequence[float]) -> float:
    """The loss over all groups."""
    return sum(values) / len(values)
