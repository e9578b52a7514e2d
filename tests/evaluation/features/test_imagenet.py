"""The optional ImageNet network, with weights from a Python package."""

import sys

import pytest
import torch

from genflow.errors import SetupError
from genflow.evaluation.features import imagenet


def test_without_the_package_one_line_says_how_to_get_it(store, monkeypatch):
    """Without the package, the error names it, and nothing is written to the store."""
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(SetupError, match="not installed") as error:
        imagenet.module(store)
    assert "genflow-ray[imagenet]" in error.value.hint
    assert not store.root.exists()


def test_its_features_separate_objects(store):
    """Two crops of one photo are more similar than crops of two photos; grey 8 x 8 pictures have 320 features, too."""
    pytest.importorskip("efficientnet_lite_pytorch")
    from sklearn.datasets import load_sample_images

    path = imagenet.module(store)
    net = torch.jit.load(str(path))
    found = []
    for picture in load_sample_images().images:
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 127.5 - 1
        found += [net(x[None, :, :, at : at + 427])[0] for at in (0, 200)]
    same = torch.nn.functional.cosine_similarity
    apart = max(same(found[a], found[b], 0) for a in (0, 1) for b in (2, 3))
    assert min(same(found[0], found[1], 0), same(found[2], found[3], 0)) > apart + 0.1
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 320)
    assert imagenet.module(store) == path
