"""The HTTP client, and `genflow sample` with a URL."""

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


def test_samples_equal_the_engine(server: str, model_store: ModelStore) -> None:
    """The client returns the engine's samples to the bit."""
    store, entries = model_store
    engine = Engine.load(store.find("runs", entries[0].run))
    own = engine.draw(range(3, 7), labels_for("all", 4, engine.facts)).images
    drawn = Client(server).samples("flow", n=4, seed=3)
    assert drawn.shape == (4, 1, 8, 8)
    np.testing.assert_array_equal(drawn[:, 0], np.rint(own[..., 0] * (255 / 16)))


def test_server_errors_become_genflow_errors(server: str) -> None:
    """The client raises UsageError with the server's message, and SetupError without a server."""
    with pytest.raises(UsageError, match="sampler: must be"):
        Client(server).samples("flow", sampler="magic")
    with pytest.raises(UsageError, match="there is no model 'a b'"):
        Client(server).samples("a b")
    with pytest.raises(SetupError, match="cannot be reached"):
        Client("http://127.0.0.1:1").models()


def test_genflow_sample_with_a_url(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`genflow sample URL` samples the first or the named model, and rejects options that need a run."""

    def draw(address: str, out: Path, *sets: str) -> None:
        sample.sample(address, n=4, seed=1, steps=2, out=out, sets=list(sets))

    draw(server, tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size[0] > 100
    draw(f"{server}v1/models/ring", tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").shape == (4, 2, 1, 1)
    assert "4 from ring at http://127.0.0.1" in capsys.readouterr().out
    with pytest.raises(UsageError, match="need a local run, not a served model"):
        draw(server, tmp_path / "grid.png", "weights=raw")
    with pytest.raises(UsageError, match="written as"):
        draw(server, tmp_path / "folder")


def test_encode_and_decode(server: str, tmp_path: Path) -> None:
    """The client encodes image files, and decodes arrays of codes."""
    client = Client(server)
    drawn = client.samples("vae", n=2, seed=1, label=3)
    files = []
    for i, picture in enumerate(drawn):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(picture[0]).save(files[-1])
    codes = client.encode("vae", files, label=3)
    assert (len(codes), codes.dtype) == (2, np.float32)
    assert client.decode("vae", (codes[:1] + codes[1:]) / 2, label=3).shape == (1, 1, 8, 8)
