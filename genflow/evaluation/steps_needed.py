"""How many steps are enough, from a run's measured quality against steps: for tables, for serving, for people.

    enough      the fewest network evaluations whose distance is at most (1 + tolerance) times the smallest
    needed      the same as an interval, from the intervals of the distances
    front       the points that no other beats (Pareto)
    recommend   the same as sampling options for a run
"""

from collections.abc import Sequence
from typing import Any

from genflow.evaluation.interval import Interval

TOLERANCE = 0.1  # of the best distance
Point = dict[str, Any]


def enough(points: Sequence[Point], tolerance: float = TOLERANCE, price: str = "nfe") -> Point:
    """The cheapest point that is good enough; among equals in price the one with fewer steps."""
    best = min(point["fd"]["value"] for point in points)
    good = [point for point in points if point["fd"]["value"] <= (1 + tolerance) * best]
    return min(good, key=lambda point: (point[price], point.get("steps") or 1))


def needed(points: Sequence[Point], tolerance: float = TOLERANCE) -> Interval:
    """The evaluations that are enough, and the ends of what the distances' own intervals leave open.

    With b the smallest distance, `low` is the fewest evaluations whose distance may lie within (1 + tolerance) b, and
    `high` the fewest whose distance does so for certain; if there are none, those of the best point.

    Args:
        points: of a sweep: [{nfe, fd: {value, low, high}}].
        tolerance: a share of the smallest distance.
    """
    best = min(points, key=lambda point: point["fd"]["value"])
    allowed = (1 + tolerance) * best["fd"]["value"]
    value = enough(points, tolerance)["nfe"]
    low = min(point["nfe"] for point in points if point["fd"]["low"] <= allowed)
    sure = [point["nfe"] for point in points if point["fd"]["high"] <= allowed]
    return Interval(value, min(low, value), max(min(sure, default=best["nfe"]), value))


def still_improves(points: Sequence[Point], tolerance: float = TOLERANCE) -> bool:
    """Whether the most evaluations that were tried are the only ones that are enough: then more may be needed."""
    return len(points) > 1 and enough(points, tolerance)["nfe"] == max(point["nfe"] for point in points)


def front(points: Sequence[Point], price: str) -> list[Point]:
    """The points that no other beats in distance without costing more, cheapest first (the Pareto front).

    Args:
        points: with `fd` and the price.
        price: its key, such as "nfe" or "ms_alone".
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point[price], point["fd"]["value"])):
        if not kept or point["fd"]["value"] < kept[-1]["fd"]["value"]:
            kept.append(point)
    return kept


def recommend(document: dict[str, Any], tolerance: float = TOLERANCE) -> dict[str, Any] | None:
    """Sampling options for a run, from its `genflow.evaluate/1` document.

    Args:
        document: with `options` and `sweep`: [{steps, sampler, nfe, fd: {value, ...}}].
        tolerance: a share of the smallest distance.

    Returns:
        `{options, nfe, fd, best, tolerance, evaluation}`; None where nothing can be chosen: a family without steps, or
        no measurement.
    """
    points = [point for point in document.get("sweep") or [] if point.get("steps")]
    if not points:
        return None
    chosen = enough(points, tolerance)
    return {
        "options": options(chosen, document),
        "nfe": chosen["nfe"],
        "fd": chosen["fd"]["value"],
        "best": min(point["fd"]["value"] for point in points),
        "tolerance": tolerance,
        "evaluation": document.get("evaluation"),
    }


def options(point: Point, document: dict[str, Any]) -> dict[str, Any]:
    """The sampling options of a point of a run's sweep; {} for a family without any."""
    sampler = point.get("sampler") or (document.get("options") or {}).get("sampler")
    found = {"steps": point.get("steps"), "sampler": sampler}
    return {name: value for name, value in found.items() if value}
