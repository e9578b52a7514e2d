"""TF32 is used in training alone, and not in slopes."""

from typing import Any

import pytest
import torch
from support.small import FACTS, batch, family, recipe

from genflow.maths import tf32
from genflow.sampling.engine import Engine
from genflow.training import loop
from genflow.training.session import Session


def flags() -> set[bool]:
    return {torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32}


def test_a_block_restores_what_was_before() -> None:
    """Also after an error."""
    before = flags()

    def fail() -> None:
        with tf32.tf32(True):
            assert flags() == {True}
            with tf32.tf32(False):
                assert flags() == {False}
            assert flags() == {True}
            raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        fail()
    assert flags() == before


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_training_uses_it_and_its_slopes_do_not(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the recipe asks for fp32; MeanFlow's derivative is a small difference of two large numbers."""
    points, seen = FACTS["points"], {"loss": set[bool](), "slope": set[bool]()}
    model = family("meanflow", points)
    average, slope, inside = model.average, model.total_derivative, []

    def watched(*arguments: Any) -> Any:
        seen["slope" if len(inside) > 1 else "loss"] |= flags()  # the first call of the slope is the net's velocity
        if inside:
            inside.append(True)
        return average(*arguments)

    def derivative(*arguments: Any) -> Any:
        inside.append(True)
        found = slope(*arguments)
        inside.clear()
        return found

    monkeypatch.setattr(model, "average", watched)
    monkeypatch.setattr(model, "total_derivative", derivative)
    train = recipe("meanflow", points, train={"steps": 2, "batch": 16, "precision": precision}).train
    loop.fit(model, lambda step: batch(points, step, 16), Session(), train)
    assert seen == {"loss": {precision != "fp32"}, "slope": {False}}


def test_an_engine_samples_without_it() -> None:
    """A sample on a GPU is as near to that of a CPU as float32 allows."""
    with tf32.tf32(True):  # an earlier engine of this process has forbidden it
        Engine(family("flow_matching", FACTS["points"]), recipe("flow_matching", FACTS["points"]))
        assert flags() == {False}
