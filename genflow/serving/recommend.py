"""The settings that a run's own measurements recommend: the fewest evaluations that cost no quality worth naming."""

from typing import Any

TOLERANCE = 0.05  # of the best distance


def recommend(document: dict[str, Any], tolerance: float = TOLERANCE) -> dict[str, Any] | None:
    """Sampling options for a run, from its `genflow.evaluate/1` document.

    Of the points of the sweep (one sampler, several steps), the one with the fewest network evaluations whose distance
    is at most (1 + tolerance) times the smallest.

    Args:
        document: with `options` and `sweep`: [{steps, nfe, fd: {value, ...}}].
        tolerance: a share of the smallest distance.

    Returns:
        `{options, nfe, fd, best, tolerance, evaluation}`; None where nothing can be chosen: a family without steps, or
        no measurement.
    """
    points = [point for point in document.get("sweep") or [] if point.get("steps")]
    if not points:
        return None
    best = min(point["fd"]["value"] for point in points)
    good = [point for point in points if point["fd"]["value"] <= (1 + tolerance) * best]
    chosen = min(good, key=lambda point: (point["nfe"], point["steps"]))
    options = {"steps": chosen["steps"]}
    if sampler := (document.get("options") or {}).get("sampler"):
        options["sampler"] = sampler
    return {
        "options": options,
        "nfe": chosen["nfe"],
        "fd": chosen["fd"]["value"],
        "best": best,
        "tolerance": tolerance,
        "evaluation": document.get("evaluation"),
    }
