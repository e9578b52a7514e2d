"""The settings that a run's measurements recommend."""

from typing import Any

from genflow.evaluation.steps_needed import needed, recommend, still_improves


def document(*points: tuple[int | None, int, float]) -> dict[str, Any]:
    sweep = [{"steps": steps, "nfe": nfe, "fd": {"value": fd}} for steps, nfe, fd in points]
    return {"evaluation": "e-1", "options": {"sampler": "heun"}, "sweep": sweep}


def test_the_fewest_evaluations_within_the_tolerance() -> None:
    """2.1 is within 10 % of 1.95, and 3.0 is not."""
    found = recommend(document((2, 3, 3.0), (5, 9, 2.1), (10, 19, 1.95), (50, 99, 1.96)))
    assert found is not None
    assert (found["options"], found["nfe"], found["best"]) == ({"steps": 5, "sampler": "heun"}, 9, 1.95)


def test_a_stricter_tolerance_takes_more() -> None:
    """With none, the best itself; among equals the cheapest."""
    found = recommend(document((2, 3, 3.0), (5, 9, 2.0), (10, 19, 1.95), (50, 99, 1.95)), tolerance=0.0)
    assert found is not None
    assert found["options"]["steps"] == 10


def test_a_points_own_sampler_is_named() -> None:
    """A sweep over several samplers keeps the best at each price: the recommendation names that one."""
    measured = document((2, 3, 3.0), (5, 9, 1.0))
    measured["sweep"][1]["sampler"] = "ab2"
    found = recommend(measured)
    assert found is not None
    assert found["options"] == {"steps": 5, "sampler": "ab2"}


def curve(*points: tuple[int, float, float]) -> list[dict[str, Any]]:
    """(nfe, fd, half the width of its interval)."""
    return [{"nfe": nfe, "fd": {"value": fd, "low": fd - r, "high": fd + r}} for nfe, fd, r in points]


def test_the_interval_of_the_steps_follows_from_the_distances() -> None:
    """The best is 1.0, so 1.1 is allowed: 8 lies within it, 4 may, 16 does for certain."""
    found = needed(curve((1, 5.0, 0.1), (4, 1.15, 0.1), (8, 1.08, 0.1), (16, 1.05, 0.01), (32, 1.0, 0.2)))
    assert vars(found) == {"value": 8, "low": 4, "high": 16}


def test_where_no_point_is_certain_the_best_one_ends_the_interval() -> None:
    """Wide intervals leave everything open up to the best."""
    found = needed(curve((1, 1.05, 0.3), (2, 1.2, 0.3), (4, 1.0, 0.3)))
    assert vars(found) == {"value": 1, "low": 1, "high": 4}


def test_a_curve_that_falls_to_its_end_is_told() -> None:
    """If only the last point is enough, more steps might be better still; a single point says nothing."""
    assert still_improves(curve((1, 4.0, 0.1), (2, 2.0, 0.1), (4, 1.0, 0.1)))
    assert not still_improves(curve((1, 4.0, 0.1), (2, 1.05, 0.1), (4, 1.0, 0.1)))
    assert not still_improves(curve((1, 4.0, 0.1)))


def test_nothing_to_choose() -> None:
    """A family without steps, or no measurement."""
    assert recommend(document((None, 1, 4.0))) is None
    assert recommend({}) is None
