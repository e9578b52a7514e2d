"""The metrics agree with other libraries on the same features: FID and KID of torchmetrics, and the package prdc."""

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from genflow.evaluation.metrics import kid
from genflow.evaluation.metrics.frechet import Gaussian
from genflow.evaluation.metrics.prdc import prdc


@pytest.fixture
def features():
    """Features of real data and samples, (400, 16) each: nonnegative like those of a network, one dimension zero."""
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((16, 16))
    real = np.maximum(rng.standard_normal((400, 16)) @ mix, 0)
    drawn = np.maximum(1.2 * rng.standard_normal((400, 16)) @ mix + 0.5, 0)
    real[:, 3] = drawn[:, 3] = 0
    return real, drawn


def test_the_frechet_distance_is_torchmetrics(features):
    """torchmetrics computes it from the eigenvalues of the product of covariances."""
    moments = [torch.from_numpy(m) for x in features for m in (x.mean(0), np.cov(x, rowvar=False))]
    real, drawn = features
    assert Gaussian(real).distance(drawn) == pytest.approx(float(_compute_fid(*moments)), rel=1e-6)


def test_kid_is_torchmetrics(features):
    """The unbiased estimate with the cubic kernel agrees for whole sets."""
    real, drawn = features
    theirs = poly_mmd(torch.from_numpy(real), torch.from_numpy(drawn))
    assert kid.kid(drawn, kid.Reference.of(real), 2).value == pytest.approx(float(theirs), rel=1e-9)


@pytest.mark.parametrize("k", [3, 5])
def test_neighbours_are_prdcs(features, k, capsys):
    """Precision, recall, density and coverage agree with the code of Naeem et al."""
    real, drawn = features
    theirs = compute_prdc(real, drawn, nearest_k=k)
    ours = prdc(drawn, real, k=k, repeats=2)
    assert {name: getattr(ours, name).value for name in theirs} == pytest.approx(theirs)
