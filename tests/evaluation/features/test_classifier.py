"""The classifier of features: it learns, is reproducible and accepts any picture size."""

import numpy as np
import pytest
import torch

from genflow.evaluation.features.classifier import Classifier, Task, accuracy, embed, train


def stripes(n: int, seed: int, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures with horizontal (0) or vertical (1) stripes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    wave = 255 * (np.arange(side) % 2)
    pictures = np.where(labels[:, None, None] == 1, wave[None, None, :], wave[None, :, None]) * np.ones((n, side, side))
    noisy = 0.7 * pictures + 0.3 * rng.integers(0, 256, pictures.shape)
    return noisy.astype(np.uint8)[..., None], labels


@pytest.mark.usefixtures("number_format")
def test_it_learns_to_classify():
    """After 60 steps it separates horizontal from vertical stripes in unseen pictures."""
    x, y = stripes(200, 0)
    task = Task("labels", 2)
    net = train(lambda rows: x[rows], y, task, (1, 8, 8), steps=60)
    assert accuracy(net, *stripes(200, 1), task) > 0.97


def test_training_is_a_function_of_its_arguments():
    """The same data and seed give identical weights; another seed gives different ones."""
    x, y = stripes(64, 0)
    make = [train(lambda rows: x[rows], y, Task("labels", 2), (1, 8, 8), seed=seed, steps=8) for seed in (0, 0, 1)]
    same, again, other = (net.state_dict() for net in make)
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not torch.equal(same["hidden.weight"], other["hidden.weight"])


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 28, 28), (3, 17, 33), (3, 96, 64)])
def test_any_picture_has_64_features(shape):
    """Small, large, odd and rectangular pictures have 64 features, independent of the batch."""
    net = Classifier(shape, 3).eval()
    C, H, W = shape
    pictures = np.random.default_rng(0).integers(0, 256, (5, H, W, C)).astype(np.uint8)
    features, classes = embed(net, pictures)
    assert features.shape == (5, 64)
    assert classes.shape == (5,)
    np.testing.assert_allclose(embed(net, pictures[2:3])[0], features[2:3], atol=1e-5)


def test_pictures_without_labels_are_classified_by_rotation():
    """Square pictures have four rotations and rectangular ones two; the answer matches the rotation."""
    square, oblong = Task.of(0, (1, 8, 8)), Task.of(1, (1, 8, 6))
    assert (square.kind, square.classes, oblong.classes) == ("turns", 4, 2)
    x = torch.arange(48.0).reshape(1, 1, 8, 6).repeat(16, 1, 1, 1)
    turned, answers = oblong.ask(x, torch.zeros(16), torch.Generator().manual_seed(0))
    assert set(answers.tolist()) == {0, 1}
    for picture, answer in zip(turned, answers, strict=True):
        assert torch.equal(picture, x[0].flip(1, 2) if answer else x[0])
