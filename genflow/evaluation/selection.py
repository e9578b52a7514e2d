"""Which run, sampler and steps to deploy: every measured setting of every run, and the choice among them.

Settings compare where they were measured on the same data, by the same features, on as many samples. Latency is that of
one sample asked for alone, because that is what a visitor waits for.
"""

import json
import math
from typing import Any

from genflow.errors import GateError, UsageError
from genflow.evaluation.interval import Interval, order
from genflow.evaluation.report.table import number
from genflow.evaluation.steps_needed import enough, options
from genflow.evaluation.steps_needed import front as front_of
from genflow.storage.store import Store

Choice = dict[str, Any]
LATENCY = "ms_alone"


def choices(store: Store, data: str = "") -> list[Choice]:
    """Every setting that was measured, once, by the newest evaluation: {run, name, family, options, nfe, fd, ms_alone,
    ms_per_image, evaluation}.

    Args:
        store: of the evaluations.
        data: a dataset; empty: that of the newest evaluation.

    Raises:
        UsageError: nothing was measured, or there is no such dataset.
    """
    wanted = store.find("datasets", data).id if data else ""
    newest: dict[str, tuple[tuple[Any, ...], Choice]] = {}
    for artifact in store.artifacts("evaluations"):
        document = json.loads(artifact.file("metrics.json").read_text())
        if (wanted and document["dataset"] != wanted) or store.get("runs", document["run"]) is None:
            continue
        for point in document["sweep"]:
            if LATENCY in point:
                alike = (document["fingerprint"], document["features"]["name"], point["fd"]["n"])
                choice = _choice(document, point)
                key = json.dumps([choice["run"], choice["options"]], sort_keys=True)
                newest.pop(key, None)
                newest[key] = (alike, choice)
    if not newest:
        raise UsageError("nothing was measured yet" + (f" on {data}" if data else ""), "genflow evaluate RUN")
    last = list(newest.values())[-1][0]
    return [choice for alike, choice in newest.values() if alike == last]


def _choice(document: dict[str, Any], point: dict[str, Any]) -> Choice:
    asked = {key: value for key, value in (document.get("sample") or {}).items() if key not in ("steps", "sampler")}
    return {
        "run": document["run"],
        "name": document["name"],
        "family": document["family"],
        "options": {**asked, **options(point, document)},
        "nfe": point["nfe"],
        "fd": point["fd"],
        "ms_alone": point["ms_alone"],
        "ms_per_image": point["ms_per_image"],
        "evaluation": document["evaluation"],
    }


def front(found: list[Choice]) -> list[Choice]:
    """Those that no other beats in distance without being slower, fastest first."""
    return front_of(found, LATENCY)


def choose(found: list[Choice], most_ms: float | None = None, most_fd: float | None = None) -> Choice:
    """The choice: under a latency the least distance, for a quality the least latency, and for neither the fastest
    within the tolerance of the least distance of all (`recommend.enough`, by latency).

    Args:
        found: from `choices`.
        most_ms: milliseconds that one sample may take.
        most_fd: the largest distance that is good enough.

    Returns:
        The choice, with `equal`: how many others within the limits cannot be told from it.

    Raises:
        GateError: nothing that was measured fits.
    """
    fast = [choice for choice in found if most_ms is None or choice[LATENCY] <= most_ms]
    fit = [choice for choice in fast if most_fd is None or choice["fd"]["value"] <= most_fd]
    if not fit:
        raise GateError(*_nothing(found, fast, most_ms, most_fd))
    if most_fd is not None and most_ms is None:
        chosen = min(fit, key=lambda choice: (choice[LATENCY], choice["fd"]["value"]))
    elif most_ms is not None:
        chosen = min(fit, key=lambda choice: (choice["fd"]["value"], choice[LATENCY]))
    else:
        chosen = enough(fit, price=LATENCY)
    own = _interval(chosen)
    chosen["equal"] = sum(order(_interval(other), own) == 0 for other in fit if other is not chosen)
    return chosen


def _interval(choice: Choice) -> Interval:
    return Interval(*(choice["fd"][key] for key in ("value", "low", "high")))


def _nothing(
    found: list[Choice], fast: list[Choice], most_ms: float | None, most_fd: float | None
) -> tuple[str, str]:
    """Why nothing fits, and what comes nearest."""
    if not fast:
        least = min(found, key=lambda choice: choice[LATENCY])
        said = f"no measured setting takes at most {number(most_ms or 0)} ms"
        ms = math.ceil(10 * least[LATENCY]) / 10  # rounded up, or the cure would not cure
        return said, f"the fastest is {least['name']}: --max-latency {ms:g}ms"
    best = min(fast, key=lambda choice: choice["fd"]["value"])
    within = f" within {number(most_ms)} ms" if most_ms is not None else ""
    said = f"no measured setting reaches fd {number(most_fd or 0)}{within}"
    return said, f"the best is {best['name']} with fd {number(best['fd']['value'])}: train longer, or ask for less"
