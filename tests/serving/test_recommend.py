"""The settings that a run's measurements recommend."""

from typing import Any

from genflow.serving.recommend import recommend


def document(*points: tuple[int | None, int, float]) -> dict[str, Any]:
    sweep = [{"steps": steps, "nfe": nfe, "fd": {"value": fd}} for steps, nfe, fd in points]
    return {"evaluation": "e-1", "options": {"sampler": "heun"}, "sweep": sweep}


def test_the_fewest_evaluations_within_the_tolerance() -> None:
    """2.0 is within 5 % of 1.95, and 3.0 is not."""
    found = recommend(document((2, 3, 3.0), (5, 9, 2.0), (10, 19, 1.95), (50, 99, 1.96)))
    assert found is not None
    assert (found["options"], found["nfe"], found["best"]) == ({"steps": 5, "sampler": "heun"}, 9, 1.95)


def test_a_stricter_tolerance_takes_more() -> None:
    """With none, the best itself; among equals the cheapest."""
    found = recommend(document((2, 3, 3.0), (5, 9, 2.0), (10, 19, 1.95), (50, 99, 1.95)), tolerance=0.0)
    assert found is not None
    assert found["options"]["steps"] == 10


def test_nothing_to_choose() -> None:
    """A family without steps, or no measurement."""
    assert recommend(document((None, 1, 4.0))) is None
    assert recommend({}) is None
