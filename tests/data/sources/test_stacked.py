"""Stacks: each channel contains a picture of the class in the record's id."""

import numpy as np
import pytest

from genflow.commands.prepare import find_source
from genflow.data.sources.base import ImageSpec
from genflow.data.sources.digits import Digits
from genflow.data.sources.find import find
from genflow.data.sources.stacked import modes
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import Data


@pytest.fixture
def stacks(prepared):
    """300 stacks of digits, one third held out."""
    return prepared("stack:digits", samples=300, val=0.33)


def by_bytes():
    """The label and number of every digit, by its bytes."""
    images, labels = Digits()._data
    return {image.tobytes(): (int(label), n) for n, (image, label) in enumerate(zip(images, labels, strict=True))}


def test_every_channel_has_the_class_of_the_id(stacks):
    """The three channels are three digits, the id contains their labels, and the record has no label."""
    known, split = by_bytes(), stacks.splits["train"]
    assert (stacks.facts.shape, stacks.facts.levels, stacks.facts.classes) == ((3, 8, 8), 17, 0)
    for stack, labels in zip(split.pixels, modes(split.ids), strict=True):
        assert [known[stack[:, :, c].tobytes()][0] for c in range(3)] == labels.tolist()


def test_held_out_stacks_are_made_of_held_out_pictures(stacks):
    """The stacks of train and val have no picture in common."""
    known = by_bytes()
    seen = {
        name: {known[stack[:, :, c].tobytes()][1] for stack in split.pixels for c in range(3)}
        for name, split in stacks.splits.items()
    }
    assert len(seen["train"]) > 300
    assert not seen["train"] & seen["val"]


def test_a_stack_does_not_depend_on_the_part_it_is_read_in():
    """A stack is the same alone and in a part with other stacks, of its block and the next."""
    source, form = find(Data(source="stack:digits", samples=3000, val=0.1)), ImageSpec(8, 3, 17)
    among = list(source.part("train", np.arange(1020, 1030)).records(form))[5]
    (alone,) = source.part("train", np.array([1025])).records(form)
    assert among.id == alone.id
    assert np.array_equal(among.value, alone.value)


def test_sources_without_labels_or_pictures_are_errors(tmp_path):
    """Points and pictures without labels cannot be stacked."""
    with pytest.raises(UsageError, match="points of the plane"):
        find(Data(source="stack:ring8"))
    np.savez(tmp_path / "plain.npz", images=np.random.default_rng(0).integers(0, 255, (20, 8, 8), np.uint8))
    with pytest.raises(DataError, match="no labels"):
        find(Data(source=f"stack:{tmp_path / 'plain.npz'}")).class_names()


def test_a_stack_of_a_dataset_in_the_store_is_one_of_its_source(store, prepared, tmp_path, monkeypatch):
    """The name of a dataset becomes the path of its source, a path becomes absolute, and a built-in name stays."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    np.savez(tmp_path / "two.npz", images=images, labels=np.arange(40) % 2)
    prepared(tmp_path / "two.npz", name="mine")
    path = f"stack:{tmp_path / 'two.npz'}"
    found = [find_source(store, f"stack:{name}") for name in ("mine", "two.npz", "digits")]
    assert found == [path, path, "stack:digits"]
    assert prepared(path, samples=100).artifact.meta["source"]["classes"] == 2
