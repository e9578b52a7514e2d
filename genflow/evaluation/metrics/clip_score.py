"""CLIP score: how well samples fit their captions, by a CLIP model in a local folder (`evaluate.clip`).

    clip_score = 100 mean max(cos(f(x_i), g(c_i)), 0)     f, g: CLIP's vectors of pictures and of captions

The floor is the value of the real pictures of these captions. Unlike `r_precision`, the judge has never seen this data:
it knows many words, and may know nothing of drawings or of pictures of few pixels. Its name has a hash of its weights,
and values for different models cannot be compared.

References:
    CLIPScore (Hessel et al., 2021), whose value is 2.5 mean max(cos, 0)   https://arxiv.org/abs/2104.08718
"""

from genflow.evaluation.interval import mean
from genflow.evaluation.metrics.base import Metric, Number, Reading, Samples, number, with_interval

MAX_SAMPLES = 500


def measure(inputs: Samples) -> dict[str, Reading]:
    """`clip_score`; {} for a run that reads no captions."""
    if inputs.prompts is None:
        message = f"clip_score: {inputs.engine.family.title} on {inputs.data.artifact.name} reads no captions"
        inputs.emit("note", message=message)
        return {}
    from pathlib import Path

    from genflow.data.values import to_display
    from genflow.evaluation.features.clip import Clip

    clip = Clip(Path(inputs.options.clip).expanduser())
    n = min(len(inputs.records), len(inputs.prompts), MAX_SAMPLES)
    rows, train = inputs.extractor.real.floor[:n], inputs.data.splits["train"]
    words = clip.captions(inputs.prompts[:n])
    drawn, real = (
        100 * (clip.pictures(to_display(records, inputs.data.facts)) * words).sum(1).clip(min=0)
        for records in (inputs.records[:n], train.take(rows))
    )
    return {"clip_score": Reading(mean(drawn), n, clip.name, float(real.mean()))}


SCORE = Number("clip_score", better="larger", tune=False)
METRIC = Metric(
    measure, needs="samples", numbers=(SCORE,), records=MAX_SAMPLES, order=43,
    applies=lambda data, options: bool(options.clip) and not data.facts.is_points,
    report=(with_interval(SCORE, "CLIP score ↑", number),),
)  # fmt: skip
