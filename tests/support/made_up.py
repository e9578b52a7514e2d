"""Hand-made evaluation documents, for tests of code that reads them."""

from typing import Any

METRICS = ("fd", "kid", "precision", "recall", "density", "coverage")


def metric(value: float, half_width: float = 0.1, floor: float = 0.5) -> dict[str, Any]:
    low, high = value - half_width, value + half_width
    return {"value": value, "low": low, "high": high, "n": 100, "features": "f", "floor": floor}


def evaluation(fd: float = 2.0, sweep: dict[int, float] | None = None, **more: Any) -> dict[str, Any]:
    """A `genflow.evaluate/1` row; `sweep` maps numbers of evaluations to fd."""
    points = [
        {"nfe": nfe, "steps": nfe, "sampler": "euler", "fd": metric(value), "ms_per_image": 0.5 * nfe,
         "ms_alone": 2.0 * nfe, "own": nfe == max(sweep or {1: 0})}
        for nfe, value in (sweep or {1: fd}).items()
    ]  # fmt: skip
    speed = {"ms_batch_1": 4.0, "ms_batch_64": 1.0, "images_per_second": 1000.0, "memory_mb": 300.0}
    whole = {
        "metrics": {name: metric(fd if name == "fd" else 0.8) for name in METRICS}, "sweep": points, "speed": speed,
        "nfe": points[-1]["nfe"], "likelihood": None, "straightness": None, "memorization": None, "modes": None,
        "training": {"images": 3200, "cpu_seconds": 16.0},
    }  # fmt: skip
    return {**whole, **more}


def study(**more: Any) -> dict[str, Any]:
    """A study with two methods, two runs, three seeds and trials of the learning rate."""
    rows = {
        "gan": {"title": "GAN", "run": "gan", "tables": ["families"]},
        "flow": {"title": "Flow matching", "run": "flow", "tables": ["families"]},
    }
    trials = {"slow": {"of": ["gan"], "lr_times": 0.3}, "fast": {"of": ["gan"], "lr_times": 3}}
    return {"seeds": [0, 1, 2], "rows": rows, "runs": {}, "trials": trials, "tolerance": 0.1, **more}
