"""R-precision of captions that no training row has, such as a known subject on a ground that it never had.

    r_precision_unseen        as `r_precision`, for captions of held-out rows only
    r_precision_unseen_hard   as `r_precision_hard`

    copies_unseen             as `copies` of `memorization`, for these samples

A caption is unseen if no training row has a caption with the same words. The floor is the value of the held-out
pictures. A value far below `r_precision` means that the run has learned its captions by heart. If a single training row
has a caption, a copy of this row is what the caption asks for; no unseen caption asks for a copy.
"""

from genflow.evaluation.features import ASKED
from genflow.evaluation.interval import Interval
from genflow.evaluation.metrics.base import Column, Metric, Model, Number, Reading, with_interval
from genflow.evaluation.metrics.memorization import memorization
from genflow.evaluation.metrics.r_precision import judge_of, readings, side_by_side


def measure(inputs: Model) -> dict[str, Reading]:
    """`r_precision_unseen` and `r_precision_unseen_hard`; {} without such captions, or for a run that reads none."""
    from genflow.evaluation import samples
    from genflow.evaluation.samples import captions_of

    real, seed = inputs.extractor.real, inputs.options.seed
    split = inputs.data.splits[real.split]
    rows = samples.unseen(inputs.data, inputs.extractor)[: min(ASKED, len(inputs.labels))]
    if inputs.engine.prompts is None or not len(rows) or (judge := judge_of(inputs)) is None:
        return {}
    drawn = samples.draw(
        inputs.engine, samples.seeds(seed, len(rows), "unseen captions"), split.labels_of(rows),
        lambda k: inputs.progress(k, "drawing samples of unseen captions"), captions_of(split, rows),
    )  # fmt: skip
    found = readings(judge, drawn.records, split, rows, seed, "r_precision_unseen")
    copies = (memorization(drawn.records, inputs.data, real) or {}).get("copies")
    if found and copies:
        interval = Interval(copies["value"], copies["low"], copies["high"])
        found["copies_unseen"] = Reading(interval, copies["n"], copies["features"], copies["floor"])
    return found


UNSEEN = Number("r_precision_unseen", better="larger")
HARD = Number("r_precision_unseen_hard", better="larger")
COPIES = Number("copies_unseen", better="smaller", tune=False)


METRIC = Metric(
    measure, needs="model", numbers=(UNSEEN, HARD, COPIES), order=42,
    applies=lambda data, options: data.facts.captions and not data.facts.is_points,
    table=(Column("unseen / hard", side_by_side(UNSEEN, HARD), has=lambda row: UNSEEN.get(row) is not None),),
    report=(
        with_interval(UNSEEN, "unseen prompt ↑"),
        with_interval(HARD, "unseen prompt ↑<small>hard</small>"),
        with_interval(COPIES, "copies ↓<small>unseen prompts</small>", mark=False),
    ),
)  # fmt: skip
