"""Metrics against those of torchmetrics and torch-fidelity, on the same features."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bench.page import Row, Table
from benchmarks.bench.pairs import Turn, ratio, take_turns
from benchmarks.bench.peers import placeholder
from genflow.evaluation.metrics.frechet import Gaussian, frechet
from genflow.evaluation.metrics.kid import Reference, kid
from genflow.evaluation.metrics.prdc import distances2, prdc, radii2

SAMPLES, REAL, DIMS, ROUNDS = 2000, 5000, 96, 8  # the features of genflow have 96 numbers
NEIGHBOUR = 3  # of precision and recall in torch-fidelity
TEXT = f"""{SAMPLES:,} samples against {REAL:,} real rows, for precision and recall against {SAMPLES:,}, as features of
{DIMS} numbers in memory. Both start from the real features; an evaluation of several runs computes genflow's part of
them once. genflow's intervals come from 50 half-samples; torchmetrics takes KID on 100 subsets of 1,000. The values
agree: to {{agreed}}. **Above 1.00 genflow is faster.**
"""


class _Identity(nn.Module):
    """An extractor whose input is the features."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.num_features = dims

    def forward(self, features: Tensor) -> Tensor:
        return features


def features(dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Made-up features of samples and of real rows: correlated, and not quite of the same distribution."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(dims, dims)) / np.sqrt(dims) * np.linspace(1, 0.05, dims)
    real = rng.normal(size=(REAL, dims)) @ mixing
    return 1.05 * rng.normal(size=(SAMPLES, dims)) @ mixing + 0.02, real


def tables(rounds: int = ROUNDS) -> Iterator[Table]:
    """The table of all metrics.

    Args:
        rounds: turns of each contestant.
    """
    samples, real = features(DIMS)
    found: dict[str, Any] = {}
    ours: dict[str, Any] = {
        "fd": lambda: Gaussian(real).distance(samples),
        "kid": lambda: kid(samples, Reference.of(real)).value,
        "pr": lambda: precision_and_recall(samples, real[:SAMPLES]),
        "pr, interval": lambda: prdc(samples, real, NEIGHBOUR),
        "fd, interval": lambda: frechet(samples, Gaussian(real)),
    }
    peers, missing = peers_of(torch.from_numpy(samples), torch.from_numpy(real))

    def turn(name: str, measure: Any) -> Turn:
        def measured() -> None:
            found[name] = measure()

        return measured

    turns = {f"genflow {name}": turn(f"genflow {name}", measure) for name, measure in ours.items()}
    turns |= {name: turn(name, measure) for name, measure in peers.items()}
    seconds = take_turns(turns, rounds, warm_up=1)
    pairs = (
        ("genflow fd", "`fd`", "fid", "torchmetrics, FID"),
        ("genflow fd, interval", "`fd` with its interval", "fid", "torchmetrics, FID"),
        ("genflow kid", "`kid` with its interval", "kid", "torchmetrics, KID"),
        ("genflow pr", "precision and recall", "prc", "torch-fidelity, both"),
        ("genflow pr, interval", "precision, recall, density, coverage, intervals", "prc", "torch-fidelity, both"),
    )
    rows = [
        Row(ours, theirs, ratio(seconds[peer], seconds[own]), 1000)
        for own, ours, peer, theirs in pairs
        if own in seconds and peer in seconds
    ]
    text = TEXT.format(agreed=agreement(found))
    yield Table("Evaluation: metrics of the same features", text, "ms", rows, missing)


def share_inside(points: np.ndarray, centres: np.ndarray) -> float:
    """The share of points in the neighbourhood of the centres."""
    radii = radii2(centres, NEIGHBOUR)
    return float(np.mean(np.concatenate([(block <= radii).any(1) for _, block in distances2(points, centres)])))


def precision_and_recall(samples: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Both values without intervals."""
    return share_inside(samples, real), share_inside(real, samples)


def peers_of(samples: Tensor, real: Tensor) -> tuple[dict[str, Any], list[str]]:
    """The metrics of other libraries, and those that are missing."""
    found: dict[str, Any] = {}
    missing = []
    dims = samples.shape[1]

    def updated(metric: Any) -> Any:
        metric.update(real, real=True)
        metric.update(samples, real=False)
        return metric.compute()

    try:  # before torchmetrics, which imports it as well
        with placeholder("torchvision"):
            from torch_fidelity.metric_prc import prc_features_to_metric

        options = {"prc_neighborhood": NEIGHBOUR, "prc_batch_size": 10_000, "save_cpu_ram": False, "verbose": False}
        found["prc"] = lambda: prc_features_to_metric(samples, real[:SAMPLES], **options)
    except ImportError as error:
        missing.append(f"torch-fidelity ({error.name or error} is not installed)")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        found["fid"] = lambda: float(updated(FrechetInceptionDistance(_Identity(dims)).set_dtype(torch.float64)))
        found["kid"] = lambda: tuple(map(float, updated(KernelInceptionDistance(_Identity(dims)))))
    except ImportError as error:
        missing.append(f"torchmetrics ({error.name or error} is not installed)")
    return found, missing


def agreement(found: dict[str, Any]) -> str:
    """How far the values are apart, in words.

    Raises:
        AssertionError: they do not agree.
    """
    parts = []
    if "fid" in found:
        apart = abs(found["genflow fd"] / found["fid"] - 1)
        assert apart < 1e-3, (found["genflow fd"], found["fid"])
        parts.append(f"{apart:.0e} of the distance")
    if "kid" in found:
        mean, spread = found["kid"]
        apart = abs(found["genflow kid"] - mean)
        assert apart < 3 * spread, (found["genflow kid"], mean, spread)
        parts.append(f"{apart / spread:.1f} standard deviations of torchmetrics' subsets in KID")
    if "prc" in found:
        own, other = found["genflow pr"], found["prc"]
        apart = max(abs(own[0] - other["precision"]), abs(own[1] - other["recall"]))
        assert apart <= 2 / SAMPLES, (own, other)
        parts.append(f"{apart:.4f} in precision and recall")
    return ", ".join(parts)
