"""How much a comparison measures by default: what was measured before, else no longer than the trainings took.

All runs of a comparison need the same number of samples, for fd depends on it. The numbers that are tried are those of
`SIZES`, and those of earlier evaluations of the runs.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from genflow.evaluation import evaluate, samples
from genflow.evaluation.metrics.base import duration
from genflow.evaluation.progress import BOUND, ESTIMATE
from genflow.evaluation.results import documents
from genflow.recipe.schema import Evaluate, Recipe
from genflow.sampling.engine import Engine
from genflow.storage.store import Artifact, Store
from genflow.system import devices

SIZES = (1.0, 0.5, 0.25, 0.125)  # shares of the samples that the recipe asks for
PICTURES = 150  # samples of the pictures of an evaluation
FIXED_S = 3.0  # of an evaluation: loading, metrics
PROBE, PROBE_S = 16, 1.0  # samples that are drawn to learn the speed; again if that took less time
Pair = tuple[Artifact, Artifact]  # a run and its dataset
T = TypeVar("T")


@dataclass(frozen=True)
class Speed:
    """What is known of a run's speed before it is measured.

    Args:
        ms: milliseconds per sample with its own setting, in batches.
        nfe: network evaluations of such a sample.
        has_steps: whether it is also measured with other numbers of steps.
        is_guided: whether it is also measured with other guidance.
        has_likelihood: whether its likelihood is measured.
    """

    ms: float
    nfe: int
    has_steps: bool
    is_guided: bool
    has_likelihood: bool

    def seconds(self, options: Evaluate) -> float:
        """About how long an evaluation takes."""
        few = min(options.sweep_samples, options.samples)
        evaluations = (options.samples + PICTURES) * self.nfe
        evaluations += few * sum(options.steps) * self.has_steps
        evaluations += few * 2 * self.nfe * len(options.guidance) * self.is_guided
        evaluations += options.likelihood * (ESTIMATE if self.has_steps else BOUND) * self.has_likelihood
        return FIXED_S + evaluations * self.ms / max(self.nfe, 1) / 1000


@dataclass(frozen=True)
class Extent:
    """What a comparison measures.

    Args:
        options: of every evaluation.
        missing: the runs that were not measured in this way before.
        seconds: about how long these take; None if it is unknown.
    """

    options: Evaluate
    missing: Sequence[Pair]
    seconds: float | None


def fit(store: Store, runs: Sequence[Pair], recipe: Recipe) -> Extent:
    """Choose what is measured.

    Args:
        store: holds the runs and their evaluations.
        runs: the runs of the comparison with their dataset.
        recipe: what is measured otherwise.
    """
    asked = recipe.evaluate
    sizes = [_resized(asked, share) for share in SIZES]
    before = _measured_before(store, [run.id for run, _ in runs], recipe)

    def missing(options: Evaluate) -> list[Pair]:
        return [pair for pair in runs if evaluate.find(store, *pair, options, recipe.sample) is None]

    for options in sorted([*sizes, *before], key=lambda options: -options.samples):
        if not missing(options):
            return Extent(options, [], 0.0)
    if os.environ.get("GENFLOW_CLUSTER"):  # this process may have another device than those that measure
        return Extent(asked, missing(asked), None)
    known = {run.id: _speed(store, run, data, recipe) for run, data in runs}
    chosen = largest_that_fits(sizes, missing, lambda pair, options: known[pair[0].id].seconds(options), _trained)
    left = missing(chosen)
    return Extent(chosen, left, sum(known[run.id].seconds(chosen) for run, _ in left))


def largest_that_fits(
    sizes: Sequence[Evaluate], missing: Callable[[Evaluate], Sequence[T]], cost: Callable[[T, Evaluate], float],
    allowed: Callable[[T], float],
) -> Evaluate:  # fmt: skip
    """The largest size whose missing evaluations cost no more than is allowed for them; the smallest if none does.

    Args:
        sizes: largest first.
        missing: what a size still has to measure.
        cost: seconds of one of these.
        allowed: seconds that it may take.
    """
    for options in sizes:
        left = missing(options)
        if sum(cost(one, options) for one in left) <= sum(allowed(one) for one in left):
            return options
    return sizes[-1]


def said(extent: Extent, runs: int, asked: Evaluate) -> str:
    """The plan in one line.

    Args:
        extent: from `fit`.
        runs: number of runs of the comparison.
        asked: what the recipe asks for; a smaller extent names the flag that measures it.
    """
    count = f"{extent.options.samples:,} samples a run"
    if not extent.missing:
        return f"compare  {runs} run{'s' * (runs != 1)}, measured before on {count}"
    before = runs - len(extent.missing)
    measured = f", {before} of them measured before" if before else ""
    about = "" if extent.seconds is None else f": about {duration(extent.seconds)}"
    trained = sum(map(_trained, extent.missing))
    limit = ""
    if extent.options.samples < asked.samples:
        limit = f", for the training took {duration(trained)}; --samples {asked.samples} measures more"
    return f"compare  {runs} run{'s' * (runs != 1)}{measured}; to measure on {count}{about}{limit}"


def _resized(options: Evaluate, share: float) -> Evaluate:
    """The options with a share of their samples, of each kind."""
    values = options.model_dump(mode="json")
    for name, least in (("samples", 16), ("sweep_samples", 16), ("likelihood", 1 if options.likelihood else 0)):
        values[name] = max(least, round(share * values[name]))
    return Evaluate(**values)


def _measured_before(store: Store, runs: Sequence[str], recipe: Recipe) -> list[Evaluate]:
    """The options of earlier evaluations of the runs that differ from the recipe's in numbers of samples only."""
    found: dict[str, Evaluate] = {}
    names = ("features", "clip", "seed")
    for _, document in documents(store):
        known = {key: value for key, value in document["evaluate"].items() if key in Evaluate.model_fields}
        options = Evaluate(**known)
        same = all(getattr(options, name) == getattr(recipe.evaluate, name) for name in names)
        if document["run"] in runs and same and (document.get("sample") or {}) == recipe.sample:
            found[options.model_dump_json()] = options
    return list(found.values())


def _trained(pair: Pair) -> float:
    """The seconds of a run's training."""
    return float(pair[0].meta.get("seconds") or pair[0].meta.get("cpu_seconds") or 0.0)


def _speed(store: Store, run: Artifact, data: Artifact, recipe: Recipe) -> Speed:
    """The speed of a run, by its newest evaluation; without one, by drawing a few samples."""
    own = [found for _, found in documents(store) if found["run"] == run.id and not found.get("sample")][-1:]
    if own and not recipe.sample:
        row: Mapping[str, Any] = own[0]
        return Speed(row["speed"]["ms_batch_64"], row["nfe"], bool(row["options"].get("steps")),
                     bool(row.get("guidance")), bool(row.get("likelihood")))  # fmt: skip
    engine = samples.with_captions(Engine.load(run, device=devices.choose(recipe.cluster.device)), store)
    if engine.family.is_autoencoder:
        return Speed(20.0, 1, False, False, False)
    prompts = engine.prompts.examples(PROBE) if engine.prompts else None
    labels = [index % max(engine.facts.classes, 1) for index in range(PROBE)]
    seconds, nfe = PROBE_S, 1
    for _ in range(2):
        started = time.perf_counter()
        nfe = engine.draw(samples.seeds(0, PROBE, "speed"), labels, prompts=prompts).nfe
        seconds = time.perf_counter() - started
        if seconds > PROBE_S:
            break
    has_likelihood = not engine.family.facts.is_latents and engine.options.get("guidance", 1.0) == 1.0
    return Speed(1000 * seconds / PROBE, nfe, "steps" in engine.options, engine.prompts is not None, has_likelihood)
