"""Reconstruction: what an autoencoder loses of pictures, and so the limit of every run on its latents.

    psnr   mean over held-out pictures of -10 log10(mean squared error / 4) in dB, for pixels in [-1, 1]
    ssim   mean over held-out pictures of the structural similarity, at most 1
    fd     the Fréchet distance of reconstructed training rows to the held-out rows, with as many rows as samples

A model of the latents that is perfect would have this `fd`, as a perfect model of pictures would have its floor. The
first two compare each picture with its own reconstruction, and the floor of `fd` is that of the same rows unchanged.
"""

from typing import TYPE_CHECKING

import numpy as np

from genflow.evaluation.interval import mean
from genflow.evaluation.metrics.base import Column, Metric, Model, Number, Row, number
from genflow.evaluation.metrics.frechet import Gaussian, frechet
from genflow.evaluation.results import MetricValue
from genflow.system.streams import NONE

if TYPE_CHECKING:
    from torch import Tensor

MAX_PICTURES = 1000  # held-out pictures for psnr and ssim
BATCH = 250


def measure(inputs: Model) -> dict[str, MetricValue] | None:
    """`psnr`, `ssim` and `fd`; None for a run that has no autoencoder."""
    engine, real, extractor = inputs.engine, inputs.extractor.real, inputs.extractor
    if engine.autoencoder is None and not engine.family.is_autoencoder:
        return None
    held_out, train = inputs.data.splits[real.split], inputs.data.splits["train"]
    likeness, features = [], []
    rows = real.reference[:MAX_PICTURES]
    for start in range(0, len(rows), BATCH):
        pictures = held_out.take(rows[start : start + BATCH])
        found = engine.reconstruct(pictures)
        likeness.append(similarity(engine.to_x(pictures), engine.to_x(found)))
        inputs.progress(0, "reconstructing")
    n = len(inputs.labels)
    for start in range(0, n, BATCH):
        found = engine.reconstruct(train.take(real.floor[start : min(start + BATCH, n)]))
        features.append(extractor.embed(found)[0])
        inputs.progress(0, "reconstructing")
    psnr, ssim = (mean(np.concatenate(parts)) for parts in zip(*likeness, strict=True))
    reference, options = extractor.cached(Gaussian), inputs.options
    distance = frechet(np.concatenate(features), reference, options.bootstrap, options.seed, inputs.labels)
    floor = reference.distance(extractor.floor[:n])
    return {
        "psnr": psnr.metric(len(rows), "pixels", None),
        "ssim": ssim.metric(len(rows), "pixels", None),
        "fd": distance.metric(n, extractor.name, floor),
    }


def similarity(x: "Tensor", y: "Tensor") -> tuple[np.ndarray, np.ndarray]:
    """The PSNR in dB and the SSIM of each pair of pictures x, y (B, C, H, W) in [-1, 1], (B,) each."""
    from genflow.maths.similarity import psnr, ssim

    return psnr(x, y).cpu().numpy(), ssim(x, y).cpu().numpy()


PSNR = Number("psnr", better="larger", path=("reconstruction", "psnr"))
SSIM = Number("ssim", better="larger", path=("reconstruction", "ssim"))
FD = Number("reconstruction_fd", better="smaller", path=("reconstruction", "fd"))


def _has(row: Row) -> bool:
    return bool(row.get("reconstruction"))


def _both(row: Row) -> str:
    fd, psnr = FD.get(row), PSNR.get(row)
    return f"{number(fd['value'])} / {psnr['value']:.1f}" if fd and psnr else NONE


def _with_psnr(row: Row) -> str:
    fd, psnr = FD.get(row), PSNR.get(row)
    return f"{number(fd['value'])}<small>PSNR {psnr['value']:.1f} dB</small>" if fd and psnr else "–"


def _floor(row: Row) -> str:
    fd = FD.get(row)
    return number(fd["floor"]) if fd and fd["floor"] is not None else "–"


METRIC = Metric(
    measure, needs="model", section="reconstruction", order=65,
    numbers=(PSNR, SSIM, FD),
    applies=lambda data, options: not data.facts.is_points,
    table=(
        Column("rec. fd / dB", _both, has=_has),
    ),
    report=(
        Column("fd ↓<small>reconstructed</small>", _with_psnr, _floor, _has),
    ),
)  # fmt: skip
