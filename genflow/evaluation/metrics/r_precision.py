"""R-precision: the share of samples whose own caption is found again among 100, by a judge of captions.

    r_precision        the 99 wrong captions are drawn at random from those of the dataset
    r_precision_hard   they are those with text embeddings nearest to the true caption: the same subject on another
                       ground, a similar subject

The judge (`features/caption_judge.py`) maps a picture to a text embedding. A sample counts if the true caption is
nearer to it than all wrong ones. Captions with the same words, and captions that some row has together, are never
wrong. Samples have the captions of training rows; for `r_precision_unseen`, captions that no training row has.

The floor is the value of the real pictures of these captions, which the judge was not trained on: the limit of what it
can tell. By chance, the value is 1 / 100, or 1 / M for a dataset with M < 100 captions.

The judge sees whether the picture fits the words better than other words of this dataset. It does not see what no
caption names, how many things there are if captions do not differ in it, or whether a picture is good: the `fd` of
samples tells that. If words are no more than a class, `agreement` measures the same thing.

References:
    AttnGAN (Xu et al., 2018), for R-precision with 99 random captions   https://arxiv.org/abs/1711.10485
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from genflow.evaluation.features import ASKED
from genflow.evaluation.interval import proportion
from genflow.evaluation.metrics.base import Column, Metric, Model, Number, Reading, Row, Samples, with_interval
from genflow.system.streams import NONE

if TYPE_CHECKING:
    from genflow.data.shards import Split
    from genflow.evaluation.features.caption_judge import CaptionJudge


def measure(inputs: Samples) -> dict[str, Reading]:
    """`r_precision` and `r_precision_hard`; {} for a run that reads no captions."""
    from genflow.evaluation.features.caption_judge import Roles

    if inputs.prompts is None or (judge := judge_of(inputs)) is None:
        return {}
    rows = Roles.of(inputs.extractor.real).asked[: min(len(inputs.records), len(inputs.prompts))]
    return readings(judge, inputs.records, inputs.data.splits["train"], rows, inputs.options.seed, "r_precision")


def judge_of(inputs: Model) -> "CaptionJudge | None":
    """The judge of the dataset's captions; None with too few of them, or for a run that reads no captions."""
    from genflow.evaluation.features.caption_judge import load_judge

    prompts = inputs.engine.prompts
    if prompts is None:
        return None
    encoder, pooled = prompts.spec.encoder, prompts.pooled
    return inputs.extractor.once(
        f"judge of captions by {encoder}",
        lambda: load_judge(inputs.store, inputs.data, inputs.extractor.real, encoder, pooled, inputs.emit),
    )


def readings(
    judge: "CaptionJudge", records: np.ndarray, split: "Split", rows: np.ndarray, seed: int, name: str
) -> dict[str, Reading]:
    """The numbers `name` and `name`_hard; {} with too few captions.

    Args:
        judge: of the dataset's captions.
        records: samples of the captions of `rows`, in that order, in the format of a split.
        split: of the rows.
        rows: (N,) row indices.
        seed: seed of the choice of wrong captions.
        name: of the number.
    """
    from genflow.evaluation.features.caption_judge import MIN_ROWS
    from genflow.evaluation.samples import captions_of

    captions = captions_of(split, rows)
    kept = np.flatnonzero([caption.strip() != "" for caption in captions])
    if len(kept) < MIN_ROWS:
        return {}
    asked = judge.pool.find(captions[place] for place in kept)
    candidates = judge.pool.candidates(asked)
    vectors, true = judge.captions(candidates), np.searchsorted(candidates, asked)
    cosines = [judge.pictures(own) @ vectors.T for own in (records[kept], split.take(rows[kept]))]
    found = {}
    for key, by_nearness in ((name, None), (f"{name}_hard", vectors)):
        wrong = judge.pool.wrong(asked, candidates, seed, by_nearness)
        hits, real = (hit(own, true, wrong)[[len(others) > 0 for others in wrong]] for own in cosines)
        if len(hits) < MIN_ROWS:
            return {}
        chance = float(np.mean([1 / (1 + len(others)) for others in wrong if len(others)]))
        found[key] = Reading(proportion(hits), len(hits), judge.name, float(real.mean()), chance)
    return found


def hit(cosines: np.ndarray, true: np.ndarray, wrong: Sequence[np.ndarray]) -> np.ndarray:
    """Whether the true caption is nearer to the picture than all wrong ones, (N,); a tie is a miss.

    Args:
        cosines: (N, K) of pictures and captions.
        true: (N,) the column of the true caption.
        wrong: for each picture, the columns of wrong captions.
    """
    return np.array(
        [own[right] > own[others].max(initial=-np.inf) for own, right, others in zip(cosines, true, wrong, strict=True)]
    )


SEEN, HARD = Number("r_precision", better="larger"), Number("r_precision_hard", better="larger")


def side_by_side(*numbers: Number) -> Callable[[Row], str]:
    """A cell with several numbers of a row."""

    def cell(row: Row) -> str:
        found = [number.get(row) for number in numbers]
        return " / ".join(f"{metric['value']:.2f}" if metric else NONE for metric in found)

    return cell


METRIC = Metric(
    measure, needs="samples", numbers=(SEEN, HARD), records=ASKED, order=41,
    applies=lambda data, options: data.facts.captions and not data.facts.is_points,
    table=(Column("prompt / hard", side_by_side(SEEN, HARD), has=lambda row: SEEN.get(row) is not None),),
    report=(with_interval(SEEN, "prompt ↑"), with_interval(HARD, "prompt ↑<small>hard</small>")),
)  # fmt: skip
