"""What one line says of a run's quality."""

from collections.abc import Mapping
from typing import Any

from genflow.evaluation.metrics.base import number
from genflow.evaluation.metrics.likelihood import likelihood_text
from genflow.evaluation.results import floors


def headline(document: Mapping[str, Any]) -> list[str]:
    """The fd with its interval and the multiple of the floor, and the likelihood of a family that has one.

    Args:
        document: a `genflow.evaluate/1` document.
    """
    fd, likelihood, multiple = document["metrics"]["fd"], document.get("likelihood"), floors(document)
    noun = "pictures" if likelihood is None or likelihood["unit"] == "bits/dim" else "points"
    times = f", {multiple:.1f} times that of real {noun}" if multiple else ""
    interval = f"{number(fd['low'])} to {number(fd['high'])}"
    parts = [f"fd {number(fd['value'])} ({interval}, {fd['n']:,} samples){times}"]
    if likelihood:
        unit = "" if likelihood["unit"] != "bits/dim" else " bits/dim"
        parts.append(f"{likelihood_text(likelihood)}{unit}")
    return parts
