"""The analysis of a search's trials agrees with closed forms."""

import math

import pytest
from scipy import stats

from genflow.tuning import analysis
from genflow.tuning.space import Domain


def row(trial: int, status: str = "finished", share: float = 1.0, params: dict | None = None, **values: float) -> dict:
    return {"trial": trial, "status": status, "share": share, "params": params or {}, "values": values}


def test_the_best_trial_is_among_those_measured_furthest():
    """A better value at an earlier rung does not win, and neither does a trial that diverged."""
    rows = [row(0, fd=3.0), row(1, "stopped", 0.3, fd=1.0), row(2, "diverged", fd=0.1), row(3, fd=2.0)]
    assert analysis.best(rows, "fd")["trial"] == 3
    assert analysis.best(rows[1:2], "fd")["trial"] == 1
    assert analysis.best(rows[2:3], "fd") is None
    assert analysis.best([row(0, recall=0.1), row(1, recall=0.9)], "recall")["trial"] == 1


def test_the_front_has_the_trials_that_no_other_dominates():
    """The three corners of a staircase are on the front, the dominated point is not, and equal points both are."""
    rows = [row(0, fd=1, ms=9), row(1, fd=2, ms=2), row(2, fd=9, ms=1), row(3, fd=3, ms=3), row(4, fd=2, ms=2)]
    assert [r["trial"] for r in analysis.pareto_front(rows, ("fd", "ms"))] == [0, 1, 4, 2]
    larger = [row(0, recall=0.9, ms=9), row(1, recall=0.1, ms=1), row(2, recall=0.05, ms=2)]
    assert {r["trial"] for r in analysis.pareto_front(larger, ("recall", "ms"))} == {0, 1}


def test_importance_goes_to_the_key_that_matters():
    """In y = x + z/20 nearly all variance is due to x; with too few trials the result is empty."""
    space = {name: Domain(name, 0.0, 1.0) for name in ("x", "z")}
    points = [((37 * i % 40) / 40, (23 * i % 40) / 40) for i in range(40)]
    rows = [row(i, params={"x": x, "z": z}, fd=x + z / 20) for i, (x, z) in enumerate(points)]
    found = analysis.importance(rows, space, "fd")
    assert found["x"] > 0.9 > 0.1 > found["z"]
    assert analysis.importance(rows[:3], space, "fd") == {}


def test_a_confirmation_is_a_paired_t_interval():
    """Student's t over the seeds' differences, n - 1 degrees; one seed gives no interval, a failed trial no pair."""
    mine = [row(i, fd=value) for i, value in enumerate([1.0, 1.2, 1.1])]
    theirs = [row(i, fd=value) for i, value in enumerate([2.0, 2.1, 2.3])]
    found = analysis.confirmation(mine, theirs, "fd")
    gaps = [-1.0, -0.9, -1.2]
    mean = sum(gaps) / 3
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 2)
    reach = stats.t.ppf(0.975, 2) * spread / math.sqrt(3)
    assert found["difference"]["value"] == pytest.approx(mean)
    assert found["difference"]["high"] == pytest.approx(mean + reach)
    assert found["upheld"]
    assert not analysis.confirmation(theirs, mine, "fd")["upheld"]
    alone = analysis.confirmation(mine[:1], theirs[:1], "fd")
    assert alone["difference"]["low"] is None
    assert not alone["upheld"]
    assert analysis.confirmation([row(0, "failed")], theirs[:1], "fd") is None
