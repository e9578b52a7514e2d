"""Quality against cost for one checkpoint: draw the first samples again with other numbers of steps and samplers.

Without `evaluate.samplers`, the run's own sampler uses `evaluate.steps` steps. Otherwise each listed sampler uses
`evaluate.steps` *evaluations*, and the curve keeps the best sampler for each number of evaluations. (The minimum of
several noisy values is biased downwards; the intervals show how noisy the values are.)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from genflow.errors import UsageError, nearest
from genflow.evaluation import samples
from genflow.evaluation.features.extractor import Emit
from genflow.evaluation.metric_suite import MetricSuite
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


def measure(
    engine: Engine, suite: MetricSuite, drawn: samples.DrawnFeatures, few: int, settings: Sequence[dict[str, Any]],
    seed: int, progress: Callable[[int, str], None], emit: Emit,
) -> list[SweepPoint]:  # fmt: skip
    """Draw and measure the first `few` samples with each setting; settings that the sampler rejects are skipped."""
    points: list[SweepPoint] = []
    for setting in settings:
        what = f"quality with {setting['steps']} steps" + (f" of {setting['sampler']}" if "sampler" in setting else "")
        try:
            point = samples.draw(
                engine, samples.seeds(seed, few), drawn.labels[:few], lambda k, w=what: progress(k, w),
                drawn.prompts and drawn.prompts[:few], **setting,
            )  # fmt: skip
        except UsageError as error:
            emit("note", message=f"skipped {what}: {error.message}")
            continue
        found = suite.distance(suite.extractor.embed(point.records)[0], point.labels)
        alone = samples.single_sample_ms(engine, int(drawn.labels[0]), **setting)
        points.append({
            "sampler": setting.get("sampler", engine.options.get("sampler")), "steps": setting["steps"],
            "nfe": point.nfe, "ms_per_image": point.ms, "ms_alone": alone, "own": False, "fd": found,
        })  # fmt: skip
    return points


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
