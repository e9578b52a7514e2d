"""Log-likelihood in bits per dimension, and two baselines that any model of pixel levels must beat.

    bits/dim = -mean(log P) / (D ln 2)

    levels        log2 K: all K pixel levels equally likely
    independent   each pixel modelled independently, by its own histogram over the training split

Points in the plane have a density instead of levels: the unit is nats per point, which may be negative.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from genflow.evaluation.interval import Z
from genflow.evaluation.metrics.base import Column, Metric, Model, Number
from genflow.system.streams import NONE

if TYPE_CHECKING:
    from genflow.data.shards import Dataset
    from genflow.evaluation.features.extractor import DataSplits, Emit
    from genflow.sampling.engine import Engine

BATCH = 32
CELLS = 50_000_000  # pixels times levels; above it the independent baseline is omitted


def measure(inputs: Model) -> dict[str, Any] | None:
    """The likelihood of the first `evaluate.likelihood` held-out records; None for a family that learned latents.

    The density of latents is not that of pictures, and bits/dim of the two cannot be compared.
    """
    if inputs.engine.family.facts.is_latents:
        return None
    count, seed = inputs.options.likelihood, inputs.options.seed
    real = inputs.extractor.real
    return likelihood(inputs.engine, inputs.data, real, count, seed, lambda done: inputs.progress(done, "likelihood"))


def likelihood(
    engine: "Engine", data: "Dataset", real: "DataSplits", images: int, seed: int, progress: "Emit"
) -> dict[str, Any] | None:
    """The likelihood of held-out records under a trained family.

    Args:
        engine: the engine of the run.
        data: the dataset.
        real: has the reference rows, of which the first ones are used.
        images: number of records; 0: none.
        seed: seed of the method's own randomness.
        progress: called with the number of finished records.

    Returns:
        {value, low, high, unit, kind, method, stderr, method_stderr, nfe, n, split, bars}; None if the family has no
        likelihood. The randomness of the method is independent for each record, so the standard deviation over records
        contains it: `stderr` is the total standard error, `method_stderr` the part caused by the method.
    """
    from genflow.evaluation.samples import captions_of
    from genflow.maths.likelihood import bits_per_dim
    from genflow.maths.rng import SampleRng, key

    rows = real.reference[:images]
    split = data.splits[real.split]
    nats, own, kind, method, nfe = [], [], "", "", 0
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        rng = SampleRng([key(seed, "likelihood", int(row)) for row in part], "likelihood", engine.device)
        label = engine.condition(split.labels_of(part), captions_of(split, part) if engine.prompts else None)
        found = engine.family.log_likelihood(engine.to_x(split.take(part)), label, rng)
        if found is None:
            return None
        nats.append(found.nats.cpu().double().numpy())
        own.append(found.stderr.cpu().double().numpy())
        kind, method, nfe = found.kind, found.method, found.nfe
        progress(len(part))
    if not nats:
        return None
    per_nat = 1.0 if data.facts.is_points else -bits_per_dim(1.0, data.facts.dims)
    values, errors = -np.concatenate(nats) * per_nat, np.concatenate(own) * per_nat
    value = float(values.mean())
    stderr = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else float(errors[0])
    return {
        "value": value,
        "low": value - Z * stderr,
        "high": value + Z * stderr,
        "unit": "nats" if data.facts.is_points else "bits/dim",
        "kind": kind,
        "method": method,
        "stderr": stderr,
        "method_stderr": float(np.sqrt(np.square(errors).sum()) / len(errors)),
        "nfe": nfe,
        "n": len(values),
        "split": real.split,
        "bars": baselines(data, real),
    }


def baselines(data: "Dataset", real: "DataSplits") -> dict[str, float]:
    """The baselines by name: for pictures in bits/dim; for points the nats of the true density."""
    from genflow.evaluation.features.extractor import ROWS

    facts, split = data.facts, data.splits[real.split]
    if facts.levels is None:
        truth = split.log_density
        if truth is None:
            return {}
        label_term = 0.0  # the families are conditional: log p(x | y) = log p(x) - log p(y) if x determines y
        if facts.classes:
            share = split.label_counts() / len(split)
            label_term = float(np.log(share[split.labels_of(real.reference)]).mean())
        return {"truth": label_term - float(truth[real.reference].mean())}
    found = {"levels": math.log2(facts.levels)}
    if facts.dims * facts.levels <= CELLS:
        train = data.splits["train"].take(real.training[:ROWS]).reshape(-1, facts.dims)
        found["independent"] = independent(train, split.take(real.reference).reshape(-1, facts.dims), facts.levels)
    return found


def independent(train: np.ndarray, held_out: np.ndarray, levels: int) -> float:
    """Bits per pixel of held_out (M, D), coded with each pixel's own histogram over train (N, D).

    A total count of one, spread over the levels, is added to each histogram, so that no level has probability zero.
    """
    dims = train.shape[1]
    offset = np.arange(dims) * levels
    counts = np.bincount((train + offset).ravel(), minlength=dims * levels)
    bits = -np.log2((counts + 1 / levels) / (len(train) + 1))
    return float(bits[held_out + offset].mean())


def likelihood_text(found: dict[str, Any] | None) -> str:
    """A likelihood with its error; ≤ marks a bound, ≈ an estimate."""
    if not found:
        return NONE
    kind = {"lower-bound": "≤ ", "ode-estimate": "≈ ", "exact-dequantized": ""}[found["kind"]]
    unit = "" if found["unit"] == "bits/dim" else f" {found['unit']}"
    return f"{kind}{found['value']:.3f} ± {found['stderr']:.3f}{unit}"


METRIC = Metric(
    measure, needs="model", section="likelihood", order=60,
    numbers=(Number("bits_per_dim", better="smaller", path=("likelihood",)),),
    table=(Column("bits/dim", lambda row: likelihood_text(row.get("likelihood"))),),
)  # fmt: skip
