"""What the numbers of a comparison say, in sentences, and no more than they say.

Two values are told apart when they differ by more than their errors together (`interval.order`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from genflow.evaluation.interval import Interval, order
from genflow.evaluation.report.table import number
from genflow.evaluation.steps_needed import TOLERANCE, enough, still_improves
from genflow.evaluation.sweep import compare_with_teachers

Row = Mapping[str, Any]  # an Evaluation
LOW_VARIETY, LOW_AGREEMENT = 0.7, 0.9
KINDS = {
    "exact-dequantized": "exact, for dequantized data",
    "lower-bound": "a bound",
    "ode-estimate": "the estimate of an ODE solver",
}


def verdict(rows: Sequence[Row]) -> list[str]:
    """The sentences, most important first.

    Args:
        rows: `genflow.evaluate/1` documents, measured alike.
    """
    ranked = sorted(rows, key=lambda row: row["metrics"]["fd"]["value"])
    parts = (_quality, _modes, _speed, _steps, _few, _straightness, _variety, _labels, _copies, _likelihood)
    return [sentence for part in parts if (sentence := part(ranked))]


def differ(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two metrics differ by more than their errors together."""
    return order(*(Interval(m["value"], m["low"], m["high"]) for m in (a, b))) != 0


def _quality(ranked: list[Row]) -> str:
    best, *others = ranked
    fd = best["metrics"]["fd"]
    measure = f"fd {number(fd['value'])}, where {fd['n']:,} real ones get {number(fd['floor'])}"
    if not differ(fd, {**fd, "value": fd["floor"], "low": fd["floor"], "high": fd["floor"]}):
        measure += "; by fd alone, at this number of samples, they cannot be told from real ones"
    if not others:
        return f"{best['name']}: {measure}."
    equal = [row["name"] for row in others if not differ(fd, row["metrics"]["fd"])]
    if not equal:
        return f"{best['name']} has the best samples: {measure}."
    names = _list([best["name"], *equal])
    if len(equal) == len(others):
        return f"No run's samples are clearly the best: {names} cannot be told apart; {measure}."
    return f"{names} have the best samples and cannot be told apart: {measure}."


def _modes(ranked: list[Row]) -> str:
    """For a density with modes: a Gaussian's moments say little of it."""
    near = [(row["name"], row["modes"]["high_quality"]) for row in ranked if "high_quality" in (row["modes"] or {})]
    found = [f"{name} {100 * share['value']:.0f} %" for name, share in near]
    return f"Points within three standard deviations of a mode: {', '.join(found)}." if found else ""


def _speed(ranked: list[Row]) -> str:
    best = ranked[0]
    fastest = min(ranked, key=lambda row: row["speed"]["ms_batch_64"])
    ms = fastest["speed"]["ms_batch_64"]
    busy = " The machine was busy, so times are rough." if any(map(was_busy, ranked)) else ""
    if len(ranked) == 1:
        alone = number(best["speed"]["ms_batch_1"])
        return f"One sample takes {number(ms)} ms in a batch of 64, and {alone} ms alone.{busy}"
    if fastest is best:
        return f"{best['name']} is also the fastest: {number(ms)} ms a sample.{busy}"
    times = best["speed"]["ms_batch_64"] / ms
    worse = fastest["metrics"]["fd"]["value"] / max(best["metrics"]["fd"]["value"], 1e-12)
    price = f"at {worse:.1f} times the fd"
    if not differ(best["metrics"]["fd"], fastest["metrics"]["fd"]):
        price = "with an fd that cannot be told apart"
    return f"{fastest['name']} is the fastest: {number(ms)} ms a sample, {number(times)} times faster, {price}.{busy}"


def was_busy(row: Row) -> bool:
    """Whether other programs wanted more than the machine had while the run was measured."""
    return (row["speed"].get("load") or 0) > row.get("cores", 1) + 0.5


def _steps(ranked: list[Row]) -> str:
    """The fewest network evaluations at which each run is nearly as good as it gets."""
    parts = []
    for row in ranked:
        curve = row["sweep"]
        if len(curve) > 1:
            still = " and still improves" if still_improves(curve) else ""
            parts.append(f"{row['name']} takes {enough(curve)['nfe']}{still}")
    within = f"{100 * TOLERANCE:.0f} %"
    return f"Network evaluations to come within {within} of a run's own best: {', '.join(parts)}." if parts else ""


def _few(ranked: list[Row]) -> str:
    """Runs that learnt few steps from another, beside that one's best plain sampler at the same price."""
    parts = []
    for at in compare_with_teachers(ranked):
        fd, plain = at["fd"], at["teacher_fd"]
        than = "better than" if fd["value"] < plain["value"] else "worse than"
        than = than if differ(fd, plain) else "as good as"
        times = f"{at['nfe']} evaluation{'s' if at['nfe'] > 1 else ''}"
        with_ = f" with {at['teacher_sampler']}" if at["teacher_sampler"] else ""
        parts.append(
            f"at {times} {at['name']} (fd {number(fd['value'])}) is {than} {at['teacher']}{with_} "
            f"({number(plain['value'])})"
        )
    alone = [row["name"] for row in ranked if row.get("init") and row["init"] not in {other["run"] for other in ranked}]
    text = f"{_list(parts)[:1].upper()}{_list(parts)[1:]}." if parts else ""
    if alone:
        text += f" {_list(alone)} learnt from a run that is not compared here."
    return text.strip()


def _straightness(ranked: list[Row]) -> str:
    """How far the ways from noise to data bend, where more than one run has such ways."""
    have = [row for row in ranked if row.get("straightness")]
    if len(have) < 2:
        return ""
    least, most = (choose(row["straightness"]["value"] for row in have) for choose in (min, max))
    parts = [f"{row['name']} {number(row['straightness']['value'])}" for row in have]
    return f"Bends of the ways from noise to data: {', '.join(parts)}." if most > 1.5 * least else ""


def _variety(ranked: list[Row]) -> str:
    """Which runs miss something that real data has."""
    parts = []
    for row in ranked:
        missing = [
            f"{name} {metric['value']:.2f} where real data has {metric['floor']:.2f}"
            for name in ("recall", "coverage")
            if (metric := row["metrics"][name])["high"] < LOW_VARIETY * metric["floor"]
        ]
        found = row.get("modes")
        if found and found.get("interval", [0, found["captured"]])[1] < found.get("ceiling", found["of"]):
            reference = f", where as many real ones show {found['ceiling']}" if "ceiling" in found else ""
            missing.append(f"{found['captured']} of {found['of']} modes{reference}")
        if missing:
            parts.append(f"{row['name']} ({_list(missing)})")
    return f"Part of the data is missing from {_list(parts)}." if parts else ""


def _labels(ranked: list[Row]) -> str:
    """Which runs do not heed the class that they are asked for."""
    asked = [row for row in ranked if "agreement" in row["metrics"]]
    weak = [
        f"{row['name']} {100 * metric['value']:.0f} %"
        for row in asked
        if (metric := row["metrics"]["agreement"])["high"] < LOW_AGREEMENT * metric["floor"]
    ]
    real = f"{100 * asked[0]['metrics']['agreement']['floor']:.0f} %" if asked else ""
    return f"Samples that look like the class that was asked for: {_list(weak)}; real ones {real}." if weak else ""


def _copies(ranked: list[Row]) -> str:
    """Which runs repeat training pictures more often than held-out pictures happen to resemble them."""
    asked = [(row["name"], found["copies"]) for row in ranked if (found := row.get("memorization"))]
    suspicious = [
        f"{name} {100 * copies['value']:.1f} %, where held-out pictures have {100 * copies['floor']:.1f} %"
        for name, copies in asked
        if copies["floor"] is not None and copies["low"] > copies["floor"] + (copies["high"] - copies["value"])
    ]
    return f"Samples that stand out as near copies of one training picture: {_list(suspicious)}." if suspicious else ""


def _likelihood(ranked: list[Row]) -> str:
    have = [row for row in ranked if row["likelihood"]]
    if not have:
        return ""
    parts = [
        f"{row['name']} {row['likelihood']['value']:.2f} ({KINDS[row['likelihood']['kind']]})"
        for row in sorted(have, key=lambda row: row["likelihood"]["value"])
    ]
    kinds = {row["likelihood"]["kind"] for row in have}
    note = "; numbers of different kinds are no ranking" if len(kinds) > 1 else ""
    unit = "Bits a dimension" if have[0]["likelihood"]["unit"] == "bits/dim" else "Nats a point"
    bars = have[0]["likelihood"]["bars"]
    worse = [row["name"] for row in have if row["likelihood"]["low"] > bars.get("independent", math.inf)]
    impossible = [row["name"] for row in have if row["likelihood"]["high"] < bars.get("truth", -math.inf)]
    if worse:
        note += f". {_list(worse)}: worse than pixels drawn apart from each other ({bars['independent']:.2f})"
    if impossible:
        note += f". {_list(impossible)}: below the truth ({bars['truth']:.2f}), so the estimate is too coarse"
    return f"{unit}: {', '.join(parts)}{note}."


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
