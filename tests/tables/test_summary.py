"""The sentences of the tables' verdict."""

import pytest
from support.made_up import metric

from genflow.tables.summary import _busy, verdict


def said(fd: float, floor: float = 0.5) -> str:
    """The sentences of tables with one method."""
    method = {"title": "GAN", "run": "gan", "quantities": {"fd": metric(fd, floor=floor)}}
    return " ".join(verdict({"methods": {"gan": method}, "claims": [], "tolerance": 0.1}))


@pytest.mark.parametrize(("fd", "warned"), [(20.0, True), (5.1, True), (4.9, False), (0.5, False)])
def test_verdicts_on_barely_trained_models_have_a_warning(fd: float, warned: bool) -> None:
    """If even the best fd is more than ten times its floor, a warning states the ratio."""
    assert ("barely trained" in said(fd)) == warned
    if warned:
        assert f"{fd / 0.5:.0f} times the fd of real data" in said(fd)


def test_without_a_floor_there_is_no_warning() -> None:
    """The floor of points in the plane can be 0."""
    assert "barely" not in said(100.0, floor=0.0)


def test_methods_that_miss_modes_of_stacks_are_listed() -> None:
    """Only methods whose interval ends below the ceiling are listed, and each run only once."""
    def method(title: str, captured: float, run: str = "") -> dict:
        stacked = {"stacked_captured": metric(captured, 20), "stacked_ceiling": metric(905, 0)}
        return {"title": title, "run": run or title, "quantities": stacked}

    methods = {"gan": method("GAN", 700), "again": method("GAN, again", 700, "GAN"), "flow": method("Flow", 890)}
    sentences = " ".join(verdict({"methods": methods, "claims": [], "tolerance": 0.1}))
    assert sentences == "Captured modes of stacked digits: as many real samples 905, GAN 700."


@pytest.mark.parametrize(("load", "warned"), [(9.0, True), (3.0, False), (None, False)])
def test_times_of_a_busy_machine_have_a_warning(load: float | None, warned: bool) -> None:
    """Two stages at once are a load of two; much more is another program."""
    known = {"load": load and {"median": load, "cores": 2}, "machine": "Linux", "claims": []}
    assert ("kept it busy (load 9 on 2 cores)" in _busy(known)) == warned
