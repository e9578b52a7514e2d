"""Quality against cost for one checkpoint: draw the first samples again with other numbers of steps and samplers.

Without `evaluate.samplers`, the run's own sampler uses `evaluate.steps` steps. Otherwise each listed sampler uses
`evaluate.steps` *evaluations*, and the curve keeps the best sampler for each number of evaluations. (The minimum of
several noisy values is biased downwards; the intervals show how noisy the values are.)

A run of captions is also drawn with other guidance scales, `evaluate.guidance`: guidance trades the variety of samples
for their likeness to the words. Its points have `r_precision`, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from genflow.errors import UsageError, nearest
from genflow.evaluation import samples
from genflow.evaluation.metric_suite import MetricSuite
from genflow.evaluation.metrics import r_precision
from genflow.evaluation.metrics.base import Samples
from genflow.evaluation.results import SweepPoint
from genflow.maths.samplers import SAMPLERS
from genflow.recipe.schema import Evaluate
from genflow.sampling.engine import Engine

FEW_EVALUATIONS = (1, 2, 4)  # numbers of evaluations at which a run is compared with its teacher


def settings_to_try(engine: Engine, options: Evaluate) -> list[dict[str, Any]]:
    """The settings to try in addition to the run's own, as sampling options.

    Raises:
        UsageError: there is no such sampler.
    """
    if unknown := [name for name in options.samplers if name not in SAMPLERS]:
        raise UsageError(f"evaluate.samplers: unknown sampler {unknown[0]}{nearest(unknown[0], list(SAMPLERS))}")
    if "steps" not in engine.options:
        return []
    if not options.samplers or "sampler" not in engine.options:
        found: list[dict[str, Any]] = [{"steps": count} for count in options.steps]
    else:
        found = [
            {"steps": steps, "sampler": name}
            for count in options.steps
            for name in options.samplers
            for steps in range(1, count + 1)
            if (price := SAMPLERS[name].evaluations) and price(steps) == count
        ]
    return [setting for setting in found if any(engine.options[name] != value for name, value in setting.items())]


def guidance_to_try(engine: Engine, options: Evaluate) -> list[dict[str, Any]]:
    """The guidance scales to try in addition to the run's own, as sampling options; [] without captions or guidance.

    A family that never dropped its captions in training cannot be guided.
    """
    if engine.prompts is None or "guidance" not in engine.options or not getattr(engine.family, "forget", 1.0):
        return []
    return [{"guidance": scale} for scale in sorted(set(options.guidance)) if scale != engine.options["guidance"]]


def own_point(inputs: Samples, suite: MetricSuite, drawn: samples.DrawnFeatures, few: int) -> SweepPoint:
    """The run's own setting, by the first `few` of the measured samples."""
    options = inputs.engine.options
    alone = samples.single_sample_ms(inputs.engine, int(drawn.labels[0]))
    point: SweepPoint = {
        "steps": options.get("steps"), "sampler": options.get("sampler"), "nfe": drawn.nfe, "ms_per_image": drawn.ms,
        "ms_alone": alone, "own": True, "fd": suite.distance(drawn.features[:few], drawn.labels[:few]),
    }  # fmt: skip
    return _described(point, inputs, inputs.records[:few], options)


def measure(
    inputs: Samples, suite: MetricSuite, few: int, settings: Sequence[dict[str, Any]]
) -> list[SweepPoint]:
    """Draw and measure the first `few` samples with each setting; settings that the sampler rejects are skipped."""
    points: list[SweepPoint] = []
    engine, labels, prompts = inputs.engine, inputs.labels[:few], inputs.prompts and inputs.prompts[:few]
    seeds = samples.seeds(inputs.options.seed, few)
    for setting in settings:
        used = {**engine.options, **setting}
        what = describe(setting)
        try:
            drawn = samples.draw(engine, seeds, labels, lambda k, w=what: inputs.progress(k, w), prompts, **setting)
        except UsageError as error:
            inputs.emit("note", message=f"skipped {what}: {error.message}")
            continue
        found = suite.distance(suite.extractor.embed(drawn.records)[0], labels)
        alone = samples.single_sample_ms(engine, int(labels[0]), **setting)
        point: SweepPoint = {
            "sampler": used.get("sampler"), "steps": used.get("steps"), "nfe": drawn.nfe, "ms_per_image": drawn.ms,
            "ms_alone": alone, "own": False, "fd": found,
        }  # fmt: skip
        points.append(_described(point, inputs, drawn.records, used))
    return points


def describe(setting: Mapping[str, Any]) -> str:
    """What is done with a setting, for progress and notes."""
    if "guidance" in setting:
        return f"quality with guidance {setting['guidance']:g}"
    return f"quality with {setting['steps']} steps" + (f" of {setting['sampler']}" if "sampler" in setting else "")


def _described(
    point: SweepPoint, inputs: Samples, records: np.ndarray, options: Mapping[str, Any]
) -> SweepPoint:
    """The point with its guidance and its R-precision, for a run of captions."""
    if inputs.prompts is not None and "guidance" in options:
        point["guidance"] = options["guidance"]
    for name, reading in r_precision.measure(replace(inputs, records=records)).items():
        point[name] = reading.metric(inputs.extractor)  # type: ignore[literal-required]
    return point


def curve(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """One point per number of evaluations: the one with the smallest fd, or the run's own setting if it is there."""
    best: dict[int, SweepPoint] = {}
    for point in points:
        known = best.get(point["nfe"])
        if known is None or (not known["own"] and (point["own"] or point["fd"]["value"] < known["fd"]["value"])):
            best[point["nfe"]] = point
    return [best[nfe] for nfe in sorted(best)]


def compare_with_teachers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare runs that started from another run (their teacher) with it, at the same small numbers of evaluations.

    Args:
        rows: `genflow.evaluate/1` documents.

    Returns:
        For each run whose teacher is among the rows, and each of 1, 2 and 4 evaluations that both were measured with:
        {name, teacher, nfe, fd, sampler, teacher_fd, teacher_sampler}.
    """
    by_run = {row["run"]: row for row in rows}
    found = []
    for row in rows:
        teacher = by_run.get(row.get("init") or "")
        if teacher is None:
            continue
        for nfe in FEW_EVALUATIONS:
            own, plain = ({p["nfe"]: p for p in r["sweep"]}.get(nfe) for r in (row, teacher))
            if own and plain:
                found.append(
                    {
                        "name": row["name"], "teacher": teacher["name"], "nfe": nfe,
                        "fd": own["fd"], "sampler": own["sampler"],
                        "teacher_fd": plain["fd"], "teacher_sampler": plain["sampler"],
                    }
                )  # fmt: skip
    return found
