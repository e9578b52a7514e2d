"""Select the run, sampler and number of steps to deploy, from every measured setting of every run.

Settings are comparable if they were measured with the same data, features and number of samples. Latency is the time of
a single sample in a batch of 1, because that is what the user of a service waits for.
"""

import json
import math
from typing import Any

from genflow.errors import GateError, UsageError
from genflow.evaluation.interval import Interval, order
from genflow.evaluation.report.table import number
from genflow.evaluation.results import FAR, documents, fd_name
from genflow.evaluation.steps_needed import enough, options
from genflow.evaluation.steps_needed import front as front_of
from genflow.storage.store import Store

Choice = dict[str, Any]
LATENCY = "ms_alone"


def choices(store: Store, data: str = "") -> list[Choice]:
    """Every measured setting of runs that draw samples, by its newest evaluation: {run, name, family, options, nfe, fd,
    fd_name, run_fd, ms_alone, ms_per_image, evaluation, dataset}. Only those comparable with the newest one are
    returned. Their fd has fewer samples than that of the run (`run_fd`), and is called so (`fd_name`).

    Args:
        store: holds the evaluations.
        data: a dataset; empty: the dataset of the newest evaluation.

    Raises:
        UsageError: no run was measured, or there is no such dataset.
    """
    wanted = store.find("datasets", data).id if data else ""
    newest: dict[str, tuple[tuple[Any, ...], Choice]] = {}
    for _, document in documents(store):
        run = store.get_or_warn("runs", document["run"])
        if (wanted and document["dataset"] != wanted) or run is None or document.get("reconstructs"):
            continue
        for point in document["sweep"]:
            if LATENCY in point:
                conditions = (document["fingerprint"], document["features"]["name"], point["fd"]["n"])
                choice = _choice(document, point)
                key = json.dumps([choice["run"], choice["options"]], sort_keys=True)
                newest.pop(key, None)
                newest[key] = (conditions, choice)
    if not newest:
        raise UsageError("no run was measured yet" + (f" on {wanted}" if wanted else ""), "genflow evaluate RUN")
    newest_conditions = list(newest.values())[-1][0]
    return [choice for conditions, choice in newest.values() if conditions == newest_conditions]


def _choice(document: dict[str, Any], point: dict[str, Any]) -> Choice:
    sampling = {key: value for key, value in (document.get("sample") or {}).items() if key not in ("steps", "sampler")}
    return {
        "run": document["run"],
        "name": document["name"],
        "family": document["family"],
        "dataset": document["dataset"],
        "options": {**sampling, **options(point, document)},
        "nfe": point["nfe"],
        "fd": point["fd"],
        "fd_name": fd_name(point["fd"]["n"], document["samples"]),
        "run_fd": document["metrics"]["fd"],
        "ms_alone": point["ms_alone"],
        "ms_per_image": point["ms_per_image"],
        "evaluation": document["evaluation"],
    }


def front(found: list[Choice]) -> list[Choice]:
    """The Pareto front of fd and latency, fastest first."""
    return front_of(found, LATENCY)


def choose(found: list[Choice], most_ms: float | None = None, most_fd: float | None = None) -> Choice:
    """Select a setting.

    With a limit on latency: the one with the smallest fd. With only a limit on fd: the fastest. Without limits: the
    fastest whose fd is within the tolerance of the smallest (`steps_needed.enough`, by latency).

    Args:
        found: from `choices`.
        most_ms: largest allowed milliseconds per sample.
        most_fd: largest allowed fd.

    Returns:
        The choice, with `equal`: the number of other settings within the limits whose fd does not differ significantly.

    Raises:
        GateError: no measured setting is within the limits.
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


def warning(found: list[Choice]) -> str:
    """A sentence if no run is near real data, by the fd that each is known by; else empty.

    The fd of a setting does not tell, for it has few samples: so has its floor, and the ratio of both is small.

    Args:
        found: from `choices`.
    """
    times = {
        choice["run_fd"]["value"] / choice["run_fd"]["floor"]: choice["name"]
        for choice in found if choice["run_fd"].get("floor")
    }  # fmt: skip
    if not times or min(times) <= FAR:
        return ""
    return (
        f"Nothing here is near real data: the smallest fd, that of {times[min(times)]}, is {min(times):.0f} times that "
        "of real data. Train longer before you deploy one."
    )


def _interval(choice: Choice) -> Interval:
    return Interval(*(choice["fd"][key] for key in ("value", "low", "high")))


def _nothing(
    found: list[Choice], fast: list[Choice], most_ms: float | None, most_fd: float | None
) -> tuple[str, str]:
    """The message and hint if no setting is within the limits; the hint names the closest one."""
    if not fast:
        least = min(found, key=lambda choice: choice[LATENCY])
        said = f"no measured setting takes at most {number(most_ms or 0)} ms"
        ms = math.ceil(10 * least[LATENCY]) / 10  # round up, so that the suggested limit is met
        return said, f"the fastest is {least['name']}: --max-latency {ms:g}ms"
    best = min(fast, key=lambda choice: choice["fd"]["value"])
    within = f" within {number(most_ms)} ms" if most_ms is not None else ""
    name = best["fd_name"]
    said = f"no measured setting reaches {name} {number(most_fd or 0)}{within}"
    value = number(best["fd"]["value"])
    return said, f"the best is {best['name']} with {name} {value}: train longer, or allow a larger fd"
