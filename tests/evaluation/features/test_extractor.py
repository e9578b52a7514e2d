"""Feature extractors: made once, named by their weights, and never trained on rows that are measured."""

import numpy as np
import pytest
import torch

from genflow.errors import DataError, UsageError
from genflow.evaluation.features import classifier
from genflow.evaluation.features.extractor import DataSplits, address, load_features


def quiet(event: str, **fields: object) -> None:
    """Ignore events."""


@pytest.fixture
def fast(monkeypatch):
    """Train extractors for a few steps only: their accuracy does not matter here."""
    monkeypatch.setattr(classifier, "MAX_STEPS", 5)
    monkeypatch.setattr(classifier, "MIN_STEPS", 5)


def test_no_row_has_two_roles(prepared):
    """Training rows, floor and reference do not overlap, with and without a held-out split."""
    for val in (0.2, 0.0):
        data = prepared("digits", val=val, name=f"digits{val}")
        real = DataSplits.of(data)
        train = [real.floor, real.training] + ([real.reference] if real.split == "train" else [])
        together = np.concatenate(train)
        assert len(together) == len(set(together.tolist())) == len(data.splits["train"])
        assert real.split == ("val" if val else "train")


def test_an_extractor_is_made_once(prepared, store, fast):
    """The second call loads the artifact, with the same name and features."""
    data = prepared("digits", val=0.2)
    first = load_features(store, data, "classifier", quiet)
    again = load_features(store, data, "classifier", lambda event, **fields: pytest.fail("it was trained again"))
    some = data.splits["val"].take(first.real.reference[:9])
    assert first.name == again.name
    assert first.name.startswith("digits-scales@")
    assert first.artifact.id == address(data.artifact, data.facts, "classifier")
    np.testing.assert_allclose(again.embed(some)[0], first.reference[:9], atol=1e-5)
    assert again.embed(some)[1].shape == (9,)


def test_data_without_labels_uses_rotations(store, tmp_path, prepared, fast):
    """The name says so, and no classes are predicted."""
    np.savez(tmp_path / "plain.npz", np.random.default_rng(0).integers(0, 256, (80, 8, 8)).astype(np.uint8))
    data = prepared(tmp_path / "plain.npz")
    found = load_features(store, data, "classifier", quiet)
    assert found.name.startswith("rotation-scales@")
    assert found.embed(data.splits["train"].take(np.arange(3)))[1] is None


def test_points_are_their_own_features(store, prepared):
    """Features are the coordinates; a point that is not finite is moved far away from all data."""
    found = load_features(store, prepared("ring8", samples=300), "classifier", quiet)
    features, classes = found.embed(np.array([[[[1.0, 2.0]]], [[[np.nan, np.inf]]]], np.float32))
    assert found.name == "coordinates"
    assert classes is None
    assert features[0].tolist() == [1, 2]
    assert (features[1] >= 1e5).all()


def test_a_torchscript_module_can_be_the_extractor(store, prepared, tmp_path):
    """Its input is in [-1, 1], channels first, and its file name is the name of the features."""

    class Corners(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.amin((2, 3)), x.amax((2, 3))], 1)

    path = tmp_path / "corners.pt"
    torch.jit.script(Corners()).save(str(path))
    found = load_features(store, prepared("digits", val=0.2), str(path), quiet)
    assert found.name.startswith("corners@")
    assert found.reference.shape[1] == 2
    assert found.reference[:, 0].min() == -1
    assert found.reference[:, 1].max() == 1


def test_random_features_do_not_depend_on_the_data(store, prepared):
    """The weights, and so the name, depend only on the shape of pictures."""
    first = load_features(store, prepared("digits", val=0.2), "random", quiet)
    other = load_features(store, prepared("digits", val=0.4), "random", quiet)
    assert first.name == other.name
    assert first.name.startswith("random-cnn@")
    assert first.reference.std() > 0
    assert first.embed(np.zeros((2, 8, 8, 1), np.uint8))[1] is None


def test_the_extractor_of_another_dataset_by_its_weights(store, prepared, fast):
    """A safetensors file by path gives the same features as in the other dataset; other files are rejected."""
    made = load_features(store, prepared("digits", val=0.2), "classifier", quiet)
    path = made.artifact.path / "classifier.safetensors"
    data = prepared("digits", val=0.4)
    again = load_features(store, data, str(path), quiet)
    records = data.splits["val"].take(np.arange(5))
    np.testing.assert_array_equal(again.embed(records)[0], made.embed(records)[0])
    with pytest.raises(UsageError, match="does not hold features of genflow"):
        load_features(store, data, str(made.artifact.path / "features.safetensors"), quiet)


@pytest.mark.parametrize(
    ("name", "dims", "called"), [("inception-2015.pt", 2048, "FID"), ("inception.pt", 64, "fd"), ("vgg.pt", 2048, "fd")]
)
def test_only_an_inception_by_path_is_called_fid(store, prepared, tmp_path, name, dims, called):
    """The distance is called FID only if the name contains "inception" and there are 2,048 features."""

    class Wide(torch.nn.Module):
        def __init__(self, dims: int) -> None:
            super().__init__()
            self.dims = dims

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :1].repeat(1, self.dims)

    torch.jit.script(Wide(dims)).save(str(tmp_path / name))
    found = load_features(store, prepared("digits", val=0.9), str(tmp_path / name), quiet)
    assert found.about["distance"] == called


@pytest.mark.parametrize("kind", ["missing", "text", "scalar"])
def test_a_module_that_cannot_be_used_is_one_line(store, prepared, tmp_path, kind):
    """A missing file, a file that is no module, or an output that is not one vector per picture is a UsageError."""

    class Total(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum()

    path = tmp_path / "wrong.pt"
    if kind == "text":
        path.write_text("not a module", encoding="utf-8")
    elif kind == "scalar":
        torch.jit.script(Total()).save(str(path))
    with pytest.raises(UsageError, match=r"wrong\.pt"):
        load_features(store, prepared("digits", val=0.2), str(path), quiet)


def test_too_little_data_is_an_error(store, prepared):
    """Twenty rows are too few for reference, floor and training."""
    with pytest.raises(DataError, match="too few rows"):
        load_features(store, prepared("ring8", samples=20, val=0.1), "classifier", quiet)
