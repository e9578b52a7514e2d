"""Does a model repeat its training pictures? Distances of samples to their nearest training rows, in pixels.

    nearest   mean distance to the nearest training row: root mean square over pixels in [-1, 1]
    copies    share of samples with d_1 < 1/2 mean(d_2 .. d_6), d_k the distance to the k-th nearest training row

Each floor is the same of held-out rows, which nobody can have copied. `nearest` below its floor may also mean blur:
a smooth picture is near to many. `copies` may not, because a blurred picture is equally near to many, and only a copy
stands out: of Fashion-MNIST's held-out rows 0.9 % do, of means of eight neighbours none, of noisy copies all. Pictures
are averaged down to at most 16 pixels a side, which forgives some noise, and keeps it cheap.

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

STANDOUT_CANDIDATES = 200  # samples of which the standouts are looked for
MAX_SAMPLES = 1000  # samples, and held-out rows, that are looked at; every training row is
SIDE, NEIGHBOURS, COPY = 16, 5, 0.5  # with 50 neighbours, held-out digits had 14 %
BLOCK = 2048  # training rows at a time


def measure(inputs: Samples) -> dict[str, MetricValue] | None:
    """`nearest` and `copies`."""
    return memorization(inputs.records, inputs.data, inputs.extractor.real)


def memorization(records: np.ndarray, data: "Dataset", real: "DataSplits") -> dict[str, MetricValue] | None:
    """`nearest` and `copies` as metrics; their floor is None where nothing is held out. None for points.

    Args:
        records: samples, as a split has them, (N, H, W, C).
        data: what the run was trained on.
        real: whose reference rows are the held-out ones.
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


def standouts(records: np.ndarray, data: "Dataset", count: int) -> np.ndarray:
    """The samples that stand out most as near to one training row, each followed by that row, (2 count, H, W, C).

    Args:
        records: samples, (N, H, W, C), of which the first 200 are looked at.
        data: what the run was trained on.
        count: how many samples, at most.
    """
    train, seen = data.splits["train"], records[:STANDOUT_CANDIDATES]
    nearest, others, rows = neighbours(downscale(seen, data.facts), train)
    chosen = np.argsort(nearest / others.clip(min=1e-9), kind="stable")[:count]
    return np.stack([seen[chosen], train.take(rows[chosen])], 1).reshape(-1, *records.shape[1:])


def neighbours(x: np.ndarray, train: "Split") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances of x (N, D), from `small`, to training rows, (N,): to the nearest, and the mean to the next five; and
    the number of the nearest row."""
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
    """Records (N, H, W, C) in [-1, 1], averaged down to at most 16 pixels a side, (N, D) float32."""
    import torch.nn.functional as F

    from genflow.data.shards import to_x

    x = to_x(records, facts)
    by = -(-max(facts.shape[1:]) // SIDE)
    return F.avg_pool2d(x, by, ceil_mode=True).flatten(1).numpy()


COPIES = Number("copies", better="smaller", path=("memorization", "copies"), tune=False)
METRIC = Metric(
    measure, needs="samples", section="memorization", numbers=(COPIES,), records=MAX_SAMPLES, order=80,
    applies=lambda data, options: not data.facts.is_points,
    report=(with_interval(COPIES, "copies ↓", mark=False),),
)  # fmt: skip
