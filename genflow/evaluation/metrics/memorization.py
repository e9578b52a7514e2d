"""Memorization: distances of samples to their nearest training pictures, in pixel space.

    nearest   mean distance to the nearest training row: root mean square over pixels in [-1, 1]
    copies    share of samples with d_1 < 1/2 mean(d_2 .. d_6), d_k the distance to the k-th nearest training row

The floor of each is its value for held-out rows, which the model cannot have copied. `nearest` below its floor can also
mean blur, because a smooth picture is close to many others. `copies` is not affected by blur: a blurred picture is
equally close to many, and only a copy is much closer to one. It is 0.9 % for held-out rows of Fashion-MNIST, 0 % for
means of eight neighbours, and 100 % for noisy copies. Pictures are averaged down to at most 16 pixels per side, which
tolerates some noise and reduces the cost.

References:
    Extracting Training Data from Diffusion Models (Carlini et al., 2023), for a distance relative to its neighbours'
    https://arxiv.org/abs/2301.13188
"""

from typing import TYPE_CHECKING

import numpy as np

from genflow.evaluation.interval import Interval, mean, proportion
from genflow.evaluation.metrics.base import Metric, Number, Samples, with_interval
from genflow.evaluation.results import MetricValue
from genflow.specs import DataSpec

if TYPE_CHECKING:
    from genflow.data.shards import Dataset, Split
    from genflow.evaluation.features.extractor import DataSplits

STANDOUT_CANDIDATES = 200  # number of samples that `standouts` considers
MAX_SAMPLES = 1000  # limit for samples and for held-out rows; all training rows are used
SIDE, NEIGHBOURS, COPY = 16, 5, 0.5  # with 50 neighbours, copies was 14 % for held-out digits
BLOCK = 2048  # training rows per block


def measure(inputs: Samples) -> dict[str, MetricValue] | None:
    """`nearest` and `copies`; None for an autoencoder, whose samples are reconstructions of training pictures."""
    if inputs.engine.family.is_autoencoder:
        return None
    return memorization(inputs.records, inputs.data, inputs.extractor.real)


def memorization(records: np.ndarray, data: "Dataset", real: "DataSplits") -> dict[str, MetricValue] | None:
    """`nearest` and `copies` as metrics; their floor is None without a held-out split. None for points.

    Args:
        records: samples in the format of a split, (N, H, W, C).
        data: the dataset that the run was trained on.
        real: has the reference rows, which are used as held-out rows.
    """
    if data.facts.is_points:
        return None
    train = data.splits["train"]
    found = _measure(downscale(records[:MAX_SAMPLES], data.facts), train)
    floors: dict[str, float | None] = dict.fromkeys(found)
    if real.split != "train":
        held_out = data.splits[real.split].take(real.reference[:MAX_SAMPLES])
        floors = {name: m.value for name, m in _measure(downscale(held_out, data.facts), train).items()}
    n = min(len(records), MAX_SAMPLES)
    return {name: interval.metric(n, "pixels", floors[name]) for name, interval in found.items()}


def _measure(x: np.ndarray, train: "Split") -> dict[str, Interval]:
    nearest, others, _ = neighbours(x, train)
    return {"nearest": mean(nearest), "copies": proportion(nearest < COPY * others)}


def standouts(records: np.ndarray, data: "Dataset", count: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples with the smallest d_1 / mean(d_2 .. d_6), each followed by its nearest training row.

    Args:
        records: samples (N, H, W, C), of which the first 200 are considered.
        data: the dataset that the run was trained on.
        count: largest number of samples.

    Returns:
        The pictures (2 count, H, W, C), and the numbers of the samples (count,).
    """
    train, seen = data.splits["train"], records[:STANDOUT_CANDIDATES]
    nearest, others, rows = neighbours(downscale(seen, data.facts), train)
    chosen = np.argsort(nearest / others.clip(min=1e-9), kind="stable")[:count]
    return np.stack([seen[chosen], train.take(rows[chosen])], 1).reshape(-1, *records.shape[1:]), chosen


def neighbours(x: np.ndarray, train: "Split") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three arrays (N,) for x (N, D) from `downscale`: the distance to the nearest training row, the mean distance to
    the next five, and the index of the nearest row."""
    best = np.empty((len(x), 0), np.float32)
    least, row = np.full(len(x), np.inf), np.zeros(len(x), np.int64)
    squares = np.square(x).sum(1)[:, None]
    for start in range(0, len(train), BLOCK):
        y = downscale(train.take(np.arange(start, min(start + BLOCK, len(train)))), train.facts)
        here = (squares + np.square(y).sum(1) - 2 * x @ y.T).clip(min=0)
        first = here.argmin(1)
        closer = here[np.arange(len(x)), first] < least
        least[closer], row[closer] = here[closer, first[closer]], start + first[closer]
        best = np.concatenate([best, here], axis=1)
        if best.shape[1] > NEIGHBOURS + 1:
            best = np.partition(best, NEIGHBOURS, axis=1)[:, : NEIGHBOURS + 1]
    distances = np.sqrt(np.sort(best, axis=1) / x.shape[1])
    return distances[:, 0], distances[:, 1:].mean(1), row


def downscale(records: np.ndarray, facts: DataSpec) -> np.ndarray:
    """Records (N, H, W, C) in [-1, 1], averaged down to at most 16 pixels per side, (N, D) float32."""
    import torch.nn.functional as F

    from genflow.data.values import to_x

    x = to_x(records, facts)
    by = -(-max(facts.shape[1:]) // SIDE)
    return F.avg_pool2d(x, by, ceil_mode=True).flatten(1).numpy()


COPIES = Number("copies", better="smaller", path=("memorization", "copies"), tune=False)
METRIC = Metric(
    measure, needs="samples", section="memorization", numbers=(COPIES,), records=MAX_SAMPLES, order=80,
    applies=lambda data, options: not data.facts.is_points,
    report=(with_interval(COPIES, "copies ↓", mark=False),),
)  # fmt: skip
