"""The client, and `genflow sample` of an address."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.cli import sample
from genflow.client import Client
from genflow.errors import SetupError, UsageError
from genflow.sampling.engine import Engine, labels_for
from genflow.serving.model_list import ServedModel
from genflow.storage.store import Store

ModelStore = tuple[Store, list[ServedModel]]


def test_samples_are_the_engines(server: str, model_store: ModelStore) -> None:
    """As numbers, to the bit."""
    store, entries = model_store
    engine = Engine.load(store.find("runs", entries[0].run))
    own = engine.draw(range(3, 7), labels_for("all", 4, engine.facts)).images
    drawn = Client(server).samples("flow", n=4, seed=3)
    assert drawn.shape == (4, 1, 8, 8)
    np.testing.assert_array_equal(drawn[:, 0], np.rint(own[..., 0] * (255 / 16)))


def test_a_refusal_is_genflows_own_error(server: str) -> None:
    """With the server's words; an address without a server says so."""
    with pytest.raises(UsageError, match="sampler: input should be"):
        Client(server).samples("flow", sampler="magic")
    with pytest.raises(UsageError, match="there is no model 'a b'"):
        Client(server).samples("a b")
    with pytest.raises(SetupError, match="cannot be reached"):
        Client("http://127.0.0.1:1").models()


def test_genflow_sample_of_an_address(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first model's, or a named one's; what only a run can do is refused."""

    def draw(address: str, out: Path, *sets: str) -> None:
        sample.sample(address, n=4, seed=1, steps=2, out=out, sets=list(sets))

    draw(server, tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size[0] > 100
    draw(f"{server}v1/models/ring", tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").shape == (4, 2, 1, 1)
    assert "4 of ring at http://127.0.0.1" in capsys.readouterr().out
    with pytest.raises(UsageError, match="asked for samples alone"):
        draw(server, tmp_path / "grid.png", "weights=raw")
    with pytest.raises(UsageError, match="written as"):
        draw(server, tmp_path / "folder")


def test_codes_go_there_and_back(server: str, tmp_path: Path) -> None:
    """The client sends picture files and arrays of codes."""
    client = Client(server)
    drawn = client.samples("vae", n=2, seed=1, label=3)
    files = []
    for i, picture in enumerate(drawn):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(picture[0]).save(files[-1])
    codes = client.encode("vae", files, label=3)
    assert (len(codes), codes.dtype) == (2, np.float32)
    assert client.decode("vae", (codes[:1] + codes[1:]) / 2, label=3).shape == (1, 1, 8, 8)
