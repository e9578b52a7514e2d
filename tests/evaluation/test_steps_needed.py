"""The number of steps that a run's measurements recommend."""

from typing import Any

from genflow.evaluation.steps_needed import needed, recommend, still_improves


def document(*points: tuple[int | None, int, float]) -> dict[str, Any]:
    sweep = [{"steps": steps, "nfe": nfe, "fd": {"value": fd}} for steps, nfe, fd in points]
    return {"evaluation": "e-1", "options": {"sampler": "heun"}, "sweep": sweep}


def test_the_fewest_evaluations_within_the_tolerance() -> None:
    """fd 2.1 is within 10 % of the best, 1.95; fd 3.0 is not."""
    found = recommend(document((2, 3, 3.0), (5, 9, 2.1), (10, 19, 1.95), (50, 99, 1.96)))
    assert found is not None
    assert (found["options"], found["nfe"], found["best"]) == ({"steps": 5, "sampler": "heun"}, 9, 1.95)


def test_a_smaller_tolerance_needs_more_steps() -> None:
    """With a tolerance of 0 the best point is selected, and among equals the cheapest."""
    found = recommend(document((2, 3, 3.0), (5, 9, 2.0), (10, 19, 1.95), (50, 99, 1.95)), tolerance=0.0)
    assert found is not None
    assert found["options"]["steps"] == 10


def test_a_points_own_sampler_is_named() -> None:
    """A sweep keeps the best of several samplers per number of evaluations; the recommendation names it."""
    measured = document((2, 3, 3.0), (5, 9, 1.0))
    measured["sweep"][1]["sampler"] = "ab2"
    found = recommend(measured)
    assert found is not None
    assert found["options"] == {"steps": 5, "sampler": "ab2"}


def curve(*points: tuple[int, float, float]) -> list[dict[str, Any]]:
    """(nfe, fd, half the width of its interval)."""
    return [{"nfe": nfe, "fd": {"value": fd, "low": fd - r, "high": fd + r}} for nfe, fd, r in points]


def test_the_interval_of_the_steps_follows_from_the_distances() -> None:
    """The best fd is 1.0, so 1.1 is allowed: 8 evaluations reach it, 4 possibly do, and 16 certainly do."""
    found = needed(curve((1, 5.0, 0.1), (4, 1.15, 0.1), (8, 1.08, 0.1), (16, 1.05, 0.01), (32, 1.0, 0.2)))
    assert vars(found) == {"value": 8, "low": 4, "high": 16}


def test_without_a_certain_point_the_interval_ends_at_the_best_point() -> None:
    """With wide intervals, the interval of the steps extends to the best point."""
    found = needed(curve((1, 1.05, 0.3), (2, 1.2, 0.3), (4, 1.0, 0.3)))
    assert vars(found) == {"value": 1, "low": 1, "high": 4}


def test_a_curve_that_still_improves_at_its_end() -> None:
    """It still improves if only the last point is enough; a single point is not a curve."""
    assert still_improves(curve((1, 4.0, 0.1), (2, 2.0, 0.1), (4, 1.0, 0.1)))
    assert not still_improves(curve((1, 4.0, 0.1), (2, 1.05, 0.1), (4, 1.0, 0.1)))
    assert not still_improves(curve((1, 4.0, 0.1)))


def test_nothing_to_choose() -> None:
    """Without steps or without a sweep there is no recommendation."""
    assert recommend(document((None, 1, 4.0))) is None
    assert recommend({}) is None
