"""The verdict of a comparison: sentences that claim no more than the measurements support.

Two values differ significantly when their difference exceeds their combined errors (`interval.order`).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from genflow.evaluation.interval import Interval, order
from genflow.evaluation.report.table import number
from genflow.evaluation.results import fd_name
from genflow.evaluation.steps_needed import TOLERANCE, enough, still_improves
from genflow.evaluation.sweep import compare_with_teachers

Row = Mapping[str, Any]  # an Evaluation
LOW_VARIETY, LOW_AGREEMENT = 0.7, 0.9
HEADLINE = 3  # sentences at the top of a page
KINDS = {
    "exact-dequantized": "exact, for dequantized data",
    "lower-bound": "a lower bound of the likelihood",
    "ode-estimate": "an estimate by an ODE solver",
}


def verdict(rows: Sequence[Row]) -> list[str]:
    """The sentences, most important first. An autoencoder is no competitor: its fd is the limit of runs on latents.

    Args:
        rows: `genflow.evaluate/1` documents with the same data, features and number of samples.
    """
    ranked = sorted(rows, key=lambda row: row["metrics"]["fd"]["value"])
    limits = _reconstructions(ranked)
    ranked = [row for row in ranked if not row.get("reconstructs")]
    if not ranked:
        return limits
    parts = (_quality, _modes, _speed, _steps, _few, _straightness, _variety, _labels, _prompts, _copies, _likelihood)
    first, *others = [sentence for part in parts if (sentence := part(ranked))]
    return [first, *limits, *others]


def sentences(statements: Sequence[str]) -> tuple[list[str], list[str]]:
    """The first three sentences of a verdict, and the others.

    Args:
        statements: of one or several sentences each, most important first.
    """
    every = [sentence for statement in statements for sentence in re.split(r"(?<=[.!?])\s+", statement)]
    return every[:HEADLINE], every[HEADLINE:]


def differ(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two metrics differ by more than their combined errors."""
    return order(*(Interval(m["value"], m["low"], m["high"]) for m in (a, b))) != 0


def _quality(ranked: list[Row]) -> str:
    best, *others = ranked
    fd = best["metrics"]["fd"]
    measure = f"fd {number(fd['value'])} (real data: {number(fd['floor'])}, both with {fd['n']:,} samples)"
    if not differ(fd, {**fd, "value": fd["floor"], "low": fd["floor"], "high": fd["floor"]}):
        measure += "; with this number of samples, fd shows no significant difference from real data"
    if not others:
        return f"{best['name']}: {measure}."
    equal = [row["name"] for row in others if not differ(fd, row["metrics"]["fd"])]
    if not equal:
        return f"{best['name']} has the best samples: {measure}."
    names = _list([best["name"], *equal])
    if len(equal) == len(others):
        return f"No run is significantly better than the others: {names}. {best['name']} has the smallest {measure}."
    return f"{names} have the best samples and do not differ significantly. {best['name']} has {measure}."


def _reconstructions(ranked: list[Row]) -> list[str]:
    """For each autoencoder, the quality of its reconstructions and the runs that learned its latents."""
    names: dict[tuple[float, float], list[str]] = {}  # runs on the latents of one autoencoder have equal values
    for row in ranked:
        if found := row.get("reconstruction"):
            own = names.setdefault((found["fd"]["value"], found["psnr"]["value"]), [])
            own += [] if row.get("reconstructs") else [row["name"]]
    sentences = []
    for (fd, psnr), runs in names.items():
        limit = f": a perfect model of the latents of {_list(runs)} has this fd" if runs else ""
        sentences.append(f"Reconstructions by the autoencoder have fd {number(fd)} and a PSNR of {psnr:.1f} dB{limit}.")
    return sentences


def _modes(ranked: list[Row]) -> str:
    """The share of points near a mode, for densities with modes: fd compares means and covariances only."""
    near = [(row["name"], row["modes"]["high_quality"]) for row in ranked if "high_quality" in (row["modes"] or {})]
    found = [f"{name} {100 * share['value']:.0f} %" for name, share in near]
    return f"Share of points within three standard deviations of a mode: {', '.join(found)}." if found else ""


def _speed(ranked: list[Row]) -> str:
    best = ranked[0]
    fastest = min(ranked, key=lambda row: row["speed"]["ms_batch_64"])
    ms = fastest["speed"]["ms_batch_64"]
    busy = " The machine was busy, so the times are inaccurate." if any(map(was_busy, ranked)) else ""
    if len(ranked) == 1:
        alone = number(best["speed"]["ms_batch_1"])
        return f"One sample takes {number(ms)} ms in a batch of 64, and {alone} ms in a batch of 1.{busy}"
    if fastest is best:
        return f"{best['name']} is also the fastest: {number(ms)} ms per sample.{busy}"
    times = best["speed"]["ms_batch_64"] / ms
    worse = fastest["metrics"]["fd"]["value"] / max(best["metrics"]["fd"]["value"], 1e-12)
    price = f"and its fd is {worse:.1f} times as large"
    if not differ(best["metrics"]["fd"], fastest["metrics"]["fd"]):
        price = "and its fd does not differ significantly"
    return (
        f"{fastest['name']} is the fastest: {number(ms)} ms per sample. It is {number(times)} times as fast as "
        f"{best['name']}, {price}.{busy}"
    )


def was_busy(row: Row) -> bool:
    """Whether the load of the machine exceeded its cores while the run was measured."""
    return (row["speed"].get("load") or 0) > row.get("cores", 1) + 0.5


def _steps(ranked: list[Row]) -> str:
    """The smallest number of network evaluations at which each run is close to its own best fd."""
    parts = []
    for row in ranked:
        curve = row["sweep"]
        if len(curve) > 1:
            still = " (more may be better still)" if still_improves(curve) else ""
            parts.append(f"{row['name']} {enough(curve)['nfe']}{still}")
    if not parts:
        return ""
    within = f"{100 * TOLERANCE:.0f} %"
    return f"Network evaluations needed to be within {within} of the run's own best fd: {', '.join(parts)}."


def _few(ranked: list[Row]) -> str:
    """Runs trained from a teacher, compared with its best ordinary sampler at equal numbers of evaluations."""
    parts = []
    for at in compare_with_teachers(ranked):
        fd, plain = at["fd"], at["teacher_fd"]
        than = "better than" if fd["value"] < plain["value"] else "worse than"
        than = than if differ(fd, plain) else "not significantly different from"
        times = f"{at['nfe']} network evaluation{'s' if at['nfe'] > 1 else ''}"
        with_ = f" using {at['teacher_sampler']}" if at["teacher_sampler"] else ""
        name = fd_name(fd["n"], ranked[0]["metrics"]["fd"]["n"])
        parts.append(
            f"with {times}, {at['name']} ({name} {number(fd['value'])}) is {than} {at['teacher']}{with_} "
            f"({number(plain['value'])})"
        )
    alone = [row["name"] for row in ranked if row.get("init") and row["init"] not in {other["run"] for other in ranked}]
    text = f"{_list(parts)[:1].upper()}{_list(parts)[1:]}." if parts else ""
    if alone:
        text += f" {_list(alone)} started from a run that is not part of this comparison."
    return text.strip()


def _straightness(ranked: list[Row]) -> str:
    """The curvature of the paths from noise to data, if more than one run has paths and they differ."""
    have = [row for row in ranked if row.get("straightness")]
    if len(have) < 2:
        return ""
    least, most = (choose(row["straightness"]["value"] for row in have) for choose in (min, max))
    parts = [f"{row['name']} {number(row['straightness']['value'])}" for row in have]
    return f"Curvature of the paths from noise to data (0: straight): {', '.join(parts)}." if most > 1.5 * least else ""


def _variety(ranked: list[Row]) -> str:
    """Runs whose samples lack part of the variety of real data."""
    parts = []
    for row in ranked:
        missing = [
            f"{name} {metric['value']:.2f} instead of {metric['floor']:.2f}"
            for name in ("recall", "coverage")
            if (metric := row["metrics"][name])["high"] < LOW_VARIETY * metric["floor"]
        ]
        found = row.get("modes")
        if found and found.get("interval", [0, found["captured"]])[1] < found.get("ceiling", found["of"]):
            reference = f" instead of {found['ceiling']}" if "ceiling" in found else ""
            missing.append(f"{found['captured']} of {found['of']} modes{reference}")
        if missing:
            parts.append(f"{row['name']} ({_list(missing)})")
    return f"Compared with real data, variety is missing from the samples of {_list(parts)}." if parts else ""


def _labels(ranked: list[Row]) -> str:
    """Runs whose samples often do not show the requested class."""
    measured = [row for row in ranked if "agreement" in row["metrics"]]
    weak = [
        f"{row['name']} {100 * metric['value']:.0f} %"
        for row in measured
        if (metric := row["metrics"]["agreement"])["high"] < LOW_AGREEMENT * metric["floor"]
    ]
    real = f"{100 * measured[0]['metrics']['agreement']['floor']:.0f} %" if measured else ""
    return f"Share of samples that show the requested class: {_list(weak)}; real data {real}." if weak else ""


def _prompts(ranked: list[Row]) -> str:
    """How often the judge of captions finds the caption of a sample among others, for runs of captions."""
    found, parts = {}, []
    for row in ranked:
        metrics = row["metrics"]
        if "r_precision" in metrics:
            found = metrics["r_precision"]
            unseen = metrics.get("r_precision_unseen")
            parts.append(
                f"{row['name']} {100 * found['value']:.0f} %"
                + (f" (captions that no training row has: {100 * unseen['value']:.0f} %)" if unseen else "")
            )
    if not parts:
        return ""
    among = f"{round(1 / found['chance']):,}"
    real = f"real data {100 * found['floor']:.0f} %, chance {100 * found['chance']:.0f} %"
    return f"Share of samples whose own caption fits best among {among}: {_list(parts)}; {real}."


def _copies(ranked: list[Row]) -> str:
    """Runs whose share of near copies of training pictures is significantly larger than that of held-out pictures."""
    measured = [
        (row["name"], found["copies"], row.get("metrics", {}).get("copies_unseen"))
        for row in ranked
        if (found := row.get("memorization"))
    ]
    suspicious = [
        f"{name} {100 * copies['value']:.1f} % (held-out pictures {100 * copies['floor']:.1f} %"
        + (f"; samples of unseen captions {100 * unseen['value']:.1f} %)" if unseen else ")")
        for name, copies, unseen in measured
        if copies["floor"] is not None and copies["low"] > copies["floor"] + (copies["high"] - copies["value"])
    ]
    return f"Share of samples that are near copies of a training picture: {_list(suspicious)}." if suspicious else ""


def _likelihood(ranked: list[Row]) -> str:
    have = [row for row in ranked if row["likelihood"]]
    if not have:
        return ""
    parts = [
        f"{row['name']} {row['likelihood']['value']:.2f} ({KINDS[row['likelihood']['kind']]})"
        for row in sorted(have, key=lambda row: row["likelihood"]["value"])
    ]
    kinds = {row["likelihood"]["kind"] for row in have}
    note = "; values of different kinds cannot be ranked" if len(kinds) > 1 else ""
    unit = "Bits per dimension" if have[0]["likelihood"]["unit"] == "bits/dim" else "Nats per point"
    bars = have[0]["likelihood"]["bars"]
    worse = [row["name"] for row in have if row["likelihood"]["low"] > bars.get("independent", math.inf)]
    impossible = [row["name"] for row in have if row["likelihood"]["high"] < bars.get("truth", -math.inf)]
    if worse:
        note += f". {_list(worse)}: worse than a model of independent pixels ({bars['independent']:.2f})"
    if impossible:
        note += f". {_list(impossible)}: below the true density ({bars['truth']:.2f}), so the estimate is inaccurate"
    return f"{unit}: {', '.join(parts)}{note}."


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
