"""How many steps are enough, from a run's measured quality against steps.

    enough      the point with the fewest network evaluations whose fd is at most (1 + tolerance) times the smallest
    needed      that number of evaluations with an interval, from the intervals of fd
    front       the Pareto front of fd and cost
    recommend   the sampling options of `enough` for a run
"""

from collections.abc import Sequence
from typing import Any

from genflow.evaluation.interval import Interval

TOLERANCE = 0.1  # as a share of the smallest fd
Point = dict[str, Any]


def enough(points: Sequence[Point], tolerance: float = TOLERANCE, price: str = "nfe") -> Point:
    """The cheapest point whose fd is within the tolerance; of equally expensive points, the one with fewer steps."""
    best = min(point["fd"]["value"] for point in points)
    good = [point for point in points if point["fd"]["value"] <= (1 + tolerance) * best]
    return min(good, key=lambda point: (point[price], point.get("steps") or 1))


def needed(points: Sequence[Point], tolerance: float = TOLERANCE) -> Interval:
    """The number of evaluations that is enough, with an interval that follows from the intervals of fd.

    With b the smallest fd, `low` is the smallest number of evaluations with fd.low <= (1 + tolerance) b, and `high` the
    smallest with fd.high <= (1 + tolerance) b; if there is none, the number of the best point.

    Args:
        points: a sweep: [{nfe, fd: {value, low, high}}].
        tolerance: as a share of the smallest fd.
    """
    best = min(points, key=lambda point: point["fd"]["value"])
    allowed = (1 + tolerance) * best["fd"]["value"]
    value = enough(points, tolerance)["nfe"]
    low = min(point["nfe"] for point in points if point["fd"]["low"] <= allowed)
    sure = [point["nfe"] for point in points if point["fd"]["high"] <= allowed]
    return Interval(value, min(low, value), max(min(sure, default=best["nfe"]), value))


def still_improves(points: Sequence[Point], tolerance: float = TOLERANCE) -> bool:
    """Whether only the largest tried number of evaluations is enough: then an even larger one may be better."""
    return len(points) > 1 and enough(points, tolerance)["nfe"] == max(point["nfe"] for point in points)


def front(points: Sequence[Point], price: str) -> list[Point]:
    """The Pareto front of fd and cost, cheapest point first.

    Args:
        points: dictionaries with `fd` and the cost.
        price: the key of the cost, such as "nfe" or "ms_alone".
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point[price], point["fd"]["value"])):
        if not kept or point["fd"]["value"] < kept[-1]["fd"]["value"]:
            kept.append(point)
    return kept


def recommend(document: dict[str, Any], tolerance: float = TOLERANCE) -> dict[str, Any] | None:
    """Sampling options for a run, from its `genflow.evaluate/1` document.

    Args:
        document: has `options` and `sweep`: [{steps, sampler, nfe, fd: {value, ...}}].
        tolerance: as a share of the smallest fd.

    Returns:
        `{options, nfe, fd, best, tolerance, evaluation}`; None for a family without steps, or without a sweep.
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
    """The sampling options of a point of a run's sweep; {} for a family without steps and samplers."""
    sampler = point.get("sampler") or (document.get("options") or {}).get("sampler")
    found = {"steps": point.get("steps"), "sampler": sampler}
    return {name: value for name, value in found.items() if value}
