"""A run's numbers as metrics of Ray, for Prometheus and deploy/grafana-training.json."""

import time
from typing import Any

from ray.util.metrics import Gauge

NAMES = {
    "loss": ("The loss, averaged over the workers.", ("run", "family", "player")),
    "gradient_norm": ("The gradient's norm before clipping.", ("run", "family", "player")),
    "step": ("Training steps so far.", ("run", "family")),
    "position": ("The used share of the budget.", ("run", "family")),
    "images_per_second": ("Images per second of all workers, since the last report.", ("run", "family")),
    "part_seconds": ("Seconds of a part of a step, mean since the last report.", ("run", "family", "part")),
}


class TrainingGauges:
    """The gauges of one run, set by its first worker.

    Args:
        run: its id.
        family: its family's kind.
    """

    def __init__(self, run: str, family: str) -> None:
        self._tags = {"run": run, "family": family}
        self._gauges = {
            name: Gauge(f"genflow_train_{name}", description=words, tag_keys=tags)
            for name, (words, tags) in NAMES.items()
        }
        self._before = (time.monotonic(), 0.0)

    def __call__(self, numbers: dict[str, Any], parts: dict[str, float]) -> None:
        """Set the gauges to a step's numbers, as the loop logs them, and to the seconds of a step's parts."""
        for name, value in numbers.items():
            kind, _, player = name.partition("/")
            if kind in ("loss", "gradient_norm"):
                self._gauges[kind].set(value, {**self._tags, "player": player or "net"})
        for name in ("step", "position"):
            self._gauges[name].set(numbers[name], self._tags)
        now, images = time.monotonic(), float(numbers["images"])
        then, seen = self._before
        if seen and now > then:
            self._gauges["images_per_second"].set((images - seen) / (now - then), self._tags)
        self._before = (now, images)
        for part, seconds in parts.items():
            self._gauges["part_seconds"].set(seconds, {**self._tags, "part": part})
