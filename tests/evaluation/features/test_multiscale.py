"""The default features see what a classifier ignores: noise, blur and fine patterns."""

import numpy as np
import pytest
import torch

from benchmarks.damage import blur, each, levels
from genflow.evaluation.features.classifier import Classifier, Task, train
from genflow.evaluation.features.multiscale import FEATURES, HIDDEN_VARIANCE, Multiscale
from genflow.evaluation.metrics.frechet import Gaussian

SIDE = 16


def discs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Coloured discs (1) and squares (0) on plain grounds."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    at, radius = rng.uniform(5, 11, (2, n, 1, 1)), rng.uniform(3, 5, (n, 1, 1))
    rows, columns = np.abs(np.indices((SIDE, SIDE))[:, None] - at)
    distance = np.where(labels[:, None, None] == 1, np.hypot(rows, columns), np.maximum(rows, columns))
    inside = np.clip(radius - distance + 0.5, 0, 1)[..., None]
    one, other = rng.integers(30, 226, (2, n, 1, 1, 3))
    return (one * inside + other * (1 - inside)).astype(np.uint8), labels


@pytest.fixture(scope="module")
def made() -> Multiscale:
    x, y = discs(600, 0)
    net = train(lambda rows: x[rows], y, Task("labels", 2), (3, SIDE, SIDE), steps=60)
    features = Multiscale(net, (3, SIDE, SIDE)).eval()
    features.fit(x)
    return features


def test_stronger_damage_costs_more(made: Multiscale) -> None:
    """Distances rise with the strength of damage; that of undamaged pictures is small, because there are many."""
    pictures, noise = discs(2000, 2)[0], np.random.default_rng(3).normal(size=(2000, SIDE, SIDE, 3))
    reference = made.embed(discs(2000, 1)[0])[0]
    whole = Gaussian(reference)
    checker = (np.indices((SIDE, SIDE)).sum(0) % 2 * 2 - 1)[..., None]
    kinds = (
        [pictures, *(levels(pictures, s * noise) for s in (6, 20))],
        [pictures, *(each(pictures, blur(radius)) for radius in (0.5, 1))],
        [pictures, *(levels(pictures, s * checker) for s in (6, 20))],
    )
    for strengths in kinds:
        vectors = [made.embed(damaged)[0] for damaged in strengths]
        found = [whole.distance(v) for v in vectors]
        assert found[0] < found[1] < found[2]
        assert found[2] > 2 * found[0]


def test_every_part_has_its_weight(made: Multiscale) -> None:
    """On the pictures of `fit`, the hidden layer has a variance of 32 in all, and each other direction at most 1."""
    features = made.embed(discs(600, 0)[0])[0]
    variances = features.var(0)
    assert variances[:FEATURES].sum() == pytest.approx(HIDDEN_VARIANCE, rel=1e-3)
    assert 0.5 < variances[FEATURES:].max() < 1.01
    np.testing.assert_allclose(features[:, FEATURES:].mean(0), 0, atol=1e-3)


def test_classes_are_those_of_the_classifier(made: Multiscale) -> None:
    pictures = discs(50, 4)[0]
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert (made.embed(pictures)[1] == made.net(x).argmax(1).numpy()).all()


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 28, 28), (3, 17, 33), (4, 96, 64)])
def test_any_picture_has_features(shape: tuple[int, int, int]) -> None:
    """Small, large, odd and rectangular pictures, flat ones and few of them have finite features in any company."""
    C, H, W = shape
    features = Multiscale(Classifier(shape, 3).eval(), shape)
    pictures = np.random.default_rng(0).integers(0, 256, (5, H, W, C)).astype(np.uint8)
    pictures[0] = 0
    features.fit(pictures)
    found = features.embed(pictures)[0]
    assert found.shape == (5, 96)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(features.embed(pictures[2:3])[0], found[2:3], atol=1e-3)
