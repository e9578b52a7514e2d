"""What the tables say in sentences."""

import pytest
from support.made_up import metric

from genflow.tables.summary import verdict


def said(fd: float, floor: float = 0.5) -> str:
    """The sentences of tables with one method."""
    method = {"title": "GAN", "run": "gan", "quantities": {"fd": metric(fd, floor=floor)}}
    return " ".join(verdict({"methods": {"gan": method}, "claims": [], "tolerance": 0.1}))


@pytest.mark.parametrize(("fd", "warned"), [(20.0, True), (5.1, True), (4.9, False), (0.5, False)])
def test_verdicts_on_barely_trained_models_are_called_so(fd: float, warned: bool) -> None:
    """Where even the best is more than ten floors away; the ratio is named."""
    assert ("barely trained" in said(fd)) == warned
    if warned:
        assert f"{fd / 0.5:.0f} times as far" in said(fd)


def test_without_a_floor_nothing_is_said_of_it() -> None:
    """Points of a plane may have none."""
    assert "barely" not in said(100.0, floor=0.0)


def test_modes_that_real_stacks_show_and_samples_do_not() -> None:
    """Only of a method whose interval ends below what as many real stacks show, and once of a training."""
    def method(title: str, captured: float, run: str = "") -> dict:
        stacked = {"stacked_captured": metric(captured, 20), "stacked_ceiling": metric(905, 0)}
        return {"title": title, "run": run or title, "quantities": stacked}

    methods = {"gan": method("GAN", 700), "again": method("GAN, again", 700, "GAN"), "flow": method("Flow", 890)}
    sentences = " ".join(verdict({"methods": methods, "claims": [], "tolerance": 0.1}))
    assert sentences == "Of the modes of stacked digits as many real ones show 905, and GAN 700."
