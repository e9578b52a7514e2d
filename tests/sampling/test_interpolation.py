"""`genflow sample --interpolate`: real end images, whole rows, the same images in every form."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.trained_run import trained_run

from genflow.cli import sample
from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.data.values import to_display
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import Data
from genflow.sampling.engine import Engine
from genflow.sampling.interpolation import layout
from genflow.storage.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Digits, a VAE and a flow of a few steps, and a GAN, which has no encoder."""
    store = Store(tmp_path_factory.mktemp("walks"))
    prepare(store, Data(source="digits"), in_process, lambda event, **fields: None)
    data = Dataset.open(store.find("datasets", "digits"))
    for kind in ("vae", "flow_matching", "gan"):
        trained_run(store, data, kind, name=kind, steps=2)
    return store


@pytest.fixture
def walk(store, monkeypatch, tmp_path, capsys):
    """`walk(kind, out)` writes an interpolation, and returns the printed document."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    monkeypatch.chdir(tmp_path)

    def run(kind: str, out: str, n: int | None = 16, seed: int = 0, label: str = "all", **options) -> dict:
        sample.sample(kind, n=n, seed=seed, label=label, out=Path(out), interpolate=True, json=True, **options)
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("kind", ["vae", "flow_matching"])
def test_a_row_starts_and_ends_with_held_out_images(store, walk, kind):
    """Both ends of a row are images of the reference split and of the row's class; the document has their ids."""
    document = walk(kind, "w.npy")
    data = Dataset.open(store.find("datasets", "digits"))
    split = data.splits[data.reference]
    images = np.load("w.npy").reshape(2, 8, 1, 8, 8)
    for row, names in enumerate(document["interpolate"]["ends"]):
        at = [split.ids.index(name) for name in names]
        assert split.labels[at].tolist() == [row, row]
        real = to_display(split.take(np.array(at)), data.facts).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(images[row, [0, 7]], real)
    assert document["interpolate"]["between"] == "pictures"
    if kind == "flow_matching":  # its codes decode to the images
        assert np.abs(images[:, 1].astype(int) - images[:, 0]).max() <= 16


def test_another_seed_interpolates_between_other_images(walk):
    """A row is a function of its seed: the second row of seed 0 is the first of seed 1."""
    ends = [walk("vae", "w.npy", seed=seed, label="3")["interpolate"]["ends"] for seed in (0, 1)]
    assert ends[0][1] == ends[1][0]
    assert ends[0][0] != ends[1][0]


def test_without_an_encoder_it_interpolates_between_seeds(store, walk):
    """The ends of a row are the samples of their seeds."""
    document = walk("gan", "w.npy", seed=5)
    images = np.load("w.npy").reshape(2, 8, 1, 8, 8)
    engine = Engine.load(store.find("runs", "gan"))
    own = engine.draw([5, 6, 7, 8], [0, 0, 1, 1]).images
    shown = to_display(own, engine.facts).transpose(0, 3, 1, 2).reshape(2, 2, 1, 8, 8)
    assert np.abs(images[:, [0, 7]].astype(int) - shown).max() <= 16  # a level of 17, rounded
    assert document["interpolate"]["between"] == "seeds"
    with pytest.raises(UsageError, match="needs an encoder, and GAN has none"):
        walk("gan", "w.npy", between=(Path("a.png"), Path("b.png")))


def test_every_form_has_the_same_images(walk):
    """A folder (names sort by row and column), an array and a table agree; the grid has 8 columns."""
    for out in ("w.npy", "w/", "w.parquet", "w.png"):
        walk("vae", out)
    array = np.load("w.npy")
    np.testing.assert_array_equal(array[:, 0], [np.asarray(Image.open(f)) for f in sorted(Path("w").iterdir())])
    table = pq.read_table("w.parquet")
    assert table["row"].to_pylist() == [0] * 8 + [1] * 8
    assert table["column"].to_pylist() == [*range(8), *range(8)]
    assert Image.open("w.png").size == (8 * 66 + 2, 2 * 66 + 2)


def test_two_images_of_the_user(store, walk, tmp_path):
    """Of any size and colour, they are converted to the data's form, and are the ends of one row."""
    Image.new("RGB", (40, 30), (255, 255, 255)).save("a.png")
    Image.new("L", (8, 8), 0).save("b.png")
    document = walk("vae", "w.npy", n=None, between=(Path("a.png"), Path("b.png")))
    images = np.load("w.npy")
    assert images.shape == (8, 1, 8, 8)
    assert (images[0] == 255).all()
    assert (images[-1] == 0).all()
    assert document["interpolate"]["ends"] == [["a.png", "b.png"]]
    Path("c.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"--between c\.png: not a PNG"):
        walk("vae", "w.npy", n=None, between=(Path("a.png"), Path("c.png")))
    with pytest.raises(DataError, match=r"--between d\.png: No such file"):
        walk("vae", "w.npy", n=None, between=(Path("d.png"), Path("a.png")))


@pytest.mark.parametrize(("n", "expected"), [(64, (8, 8)), (8, (1, 8)), (3, (1, 3)), (None, (8, 8)), (24, (3, 8))])
def test_n_is_the_number_of_images(n, expected):
    """They are in rows of eight, or in one shorter row."""
    assert layout(n, own=False) == expected


@pytest.mark.parametrize("n", [1, 2, 9, 63])
def test_a_number_that_does_not_fill_rows_is_rejected(n):
    """The error says that rows have 8 images."""
    with pytest.raises(UsageError, match="do not fill rows of 8"):
        layout(n, own=False)


def test_an_option_without_effect_is_rejected(walk):
    """Decoding has no number of steps."""
    with pytest.raises(UsageError, match="steps cannot be combined with --interpolate"):
        walk("flow_matching", "w.npy", steps=4)
