"""Objectives with a known optimum, in place of training."""

import math
import os
import signal
import time
from pathlib import Path
from typing import Any


def bowl(params: dict[str, Any], share: float) -> float:
    """(log10 lr + 2)^2 + (ema - 0.1)^2: 0 at lr = 0.01, ema = 0.1, plus 0.1 (1 - share)."""
    return (math.log10(params["train.lr"]) + 2) ** 2 + (params.get("train.ema", 0.1) - 0.1) ** 2 + 0.1 * (1 - share)


def counted(params: dict[str, Any], share: float) -> float:
    """`bowl` after a pause of $COUNTED_S seconds; every call appends a line to $COUNTED."""
    time.sleep(float(os.environ.get("COUNTED_S", "0")))
    with Path(os.environ["COUNTED"]).open("a", encoding="utf-8") as file:
        file.write(f"{params['train.lr']!r} {share}\n")
    return bowl(params, share)


def bad(params: dict[str, Any], share: float) -> float:
    """An error for low learning rates, NaN for high ones."""
    if params["train.lr"] < 0.01:
        raise ValueError("the rate is too low")
    return math.nan if params["train.lr"] > 0.1 else bowl(params, share)


def trade(params: dict[str, Any], share: float) -> dict[str, float]:
    """Quality against time: fd = 1/s and ms = s for s steps, so that every s is on the Pareto front."""
    return {"fd": 1 / params["sample.steps"], "ms": float(params["sample.steps"])}


def deadly(params: dict[str, Any], share: float) -> float:
    """`counted`; its first call with lr = 0.01 and the full budget kills its own process with SIGKILL."""
    once = Path(os.environ["COUNTED"]).with_suffix(".killed")
    if params["train.lr"] == 0.01 and share == 1 and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return counted(params, share)
