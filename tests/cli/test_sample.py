"""`genflow sample`: other libraries can read every output format."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genflow.cli import sample as command
from genflow.data.prepare import in_process, prepare
from genflow.errors import UsageError
from genflow.recipe.compose import compose
from genflow.recipe.schema import Data
from genflow.storage.store import Store
from jobs import train


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A store with one small run on digits."""
    store = Store(tmp_path_factory.mktemp("drawing"))
    prepare(store, Data(source="digits"), in_process, lambda event, **fields: None)
    layers = {"name": "small", "data": {"name": "digits"}, "net": {"width": 8}, "train": {"steps": 2, "batch": 8}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENFLOW_STORE", str(store.root))
        recipe = compose("flow_matching", layers).model_dump(mode="json")
        train.main({"recipe": recipe, "inputs": {}}, lambda event, **fields: None)
    return store


@pytest.fixture
def sample(store, monkeypatch, tmp_path):
    """Draw twelve samples into a file and return its path."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    monkeypatch.chdir(tmp_path)

    def draw(out: str, label: str = "all", **options) -> Path:
        command.sample("small", n=12, seed=5, label=label, out=Path(out), json=True, **options)
        return Path(out)

    return draw


def test_every_format_has_the_same_pixels(sample, capsys):
    """PNG files, an array and a Parquet table from the same seed have identical pixels."""
    array = np.load(sample("a.npy"))
    folder = [np.asarray(Image.open(f)) for f in sorted(sample("pictures/").iterdir())]
    table = pq.read_table(sample("a.parquet"))

    assert array.shape == (12, 1, 8, 8)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array[:, 0], np.stack(folder))
    assert table["seed"].to_pylist() == list(range(5, 17))
    assert table["label"].to_pylist() == [i % 10 for i in range(12)]
    assert json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}


def test_a_label_is_a_name_or_a_number(sample):
    """--label 3 draws only class 3; an unknown class is a usage error."""
    assert set(pq.read_table(sample("a.parquet", "3"))["label"].to_pylist()) == {3}
    with pytest.raises(UsageError, match="no such class"):
        sample("c.npy", "eleven")


@pytest.mark.parametrize(("guidance", "nfe"), [(None, 4), (2.0, 8)])
def test_the_document_counts_evaluations(sample, capsys, guidance, nfe):
    """The JSON document counts two network evaluations per step with guidance."""
    sample("a.png", steps=4, guidance=guidance)

    assert json.loads(capsys.readouterr().out)["nfe"] == nfe
