"""What the command line does with the run of an autoencoder, which draws no pictures by itself."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.cli import dispatch, export, reflow, runs, sample, serve
from genflow.data.prepare import in_process, prepare
from genflow.data.preview import render
from genflow.data.shards import Dataset
from genflow.errors import UsageError
from genflow.evaluation import results, selection
from genflow.evaluation.report import table
from genflow.recipe.compose import compose
from genflow.recipe.schema import Data
from genflow.sampling.engine import Engine
from genflow.storage.store import Artifact, Store
from jobs import train


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one small autoencoder of digits."""
    store = Store(tmp_path_factory.mktemp("autoencoder"))
    prepare(store, Data(source="digits"), in_process, lambda event, **fields: None)
    layers = {"name": "ae", "data": {"name": "digits"}, "net": {"width": 8}, "train": {"steps": 3, "batch": 8}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENFLOW_STORE", str(store.root))
        recipe = compose("autoencoder", layers).model_dump(mode="json")
        train.main({"recipe": recipe, "inputs": {}}, lambda event, **fields: None)
    return store


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Artifact:
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    monkeypatch.chdir(tmp_path)
    return store.find("runs", "ae")


def test_the_preview_shows_held_out_pictures_above_their_reconstructions(run: Artifact, store: Store) -> None:
    """Rows alternate: ten held-out pictures, then what the averaged weights keep of them; so short a run has two."""
    *_, file = sorted((run.path / "samples").glob("*.png"))
    data = Dataset.open(store.find("datasets", "digits"))
    split, engine = data.splits["val"], Engine.load(run)
    rows = np.linspace(0, len(split) - 1, 10).astype(int).reshape(1, 10)
    lines = [part for line in rows for part in (split.take(line), engine.reconstruct(split.take(line)))]
    expected = Image.open(io.BytesIO(render(np.concatenate(lines), data.facts, 10)))
    np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(expected))


def test_commands_that_need_samples_name_the_command_that_uses_it(run: Artifact) -> None:
    """`sample`, `serve` and `reflow` are one-line errors of usage, and nothing is written."""
    calls = [
        lambda: sample.sample("ae", out=Path("grid.png")),
        lambda: sample.sample("ae", n=4, label="3", out=Path("grid.png"), sets=["weights=raw"]),
        lambda: serve.serve(["ae"], port=0),
        lambda: reflow.reflow("ae", dry_run=True),
    ]
    for call in calls:
        with pytest.raises(UsageError) as refused:
            call()
        assert refused.value.message == f"{run.id} is an autoencoder: it draws no pictures by itself"
        assert refused.value.hint.startswith(f"genflow encode digits --autoencoder {run.id}")
        assert refused.value.code == 2
    assert list(Path().iterdir()) == []


def test_it_interpolates_between_held_out_pictures(run: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    """A row starts and ends with real pictures, and has decoded latents between them."""
    sample.sample("ae", n=5, interpolate=True, out=Path("between.npy"), json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["interpolate"]["between"] == "pictures"
    assert np.load("between.npy").shape == (5, 1, 8, 8)


def test_its_export_reconstructs_as_the_run_does(run: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder of safetensors is a whole autoencoder."""
    export.export("ae", to="safetensors", out=Path("exported"), json=True)
    images = np.random.default_rng(0).integers(0, 17, (4, 8, 8, 1), dtype=np.uint8)
    exported, own = Engine.from_folder(Path("exported")), Engine.load(run)
    np.testing.assert_array_equal(exported.reconstruct(images), own.reconstruct(images))


def test_it_is_not_recommended(run: Artifact, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """An autoencoder's fd is that of reconstructions: it is no best run, and no setting to deploy."""
    fd = {"value": 0.1, "low": 0.1, "high": 0.1, "n": 16, "floor": 0.1}
    point = {"ms_alone": 1.0, "ms_per_image": 1.0, "nfe": 1, "fd": fd, "steps": None, "sampler": None}
    document = {
        "run": run.id, "name": "ae", "family": "autoencoder", "dataset": run.meta["dataset"], "evaluation": "e",
        "fingerprint": "f", "features": {"name": "n"}, "metrics": {"fd": fd}, "sweep": [point], "reconstructs": True,
        "reconstruction": {"psnr": {**fd, "value": 20.0}},
    }  # fmt: skip
    for module in (selection, results):
        monkeypatch.setattr(module, "documents", lambda store: [(None, document)])
    with pytest.raises(UsageError, match="no run was measured yet"):
        selection.choices(store)
    with pytest.raises(UsageError, match="no run was measured yet"):
        table.best_run(store, "fd")
    monkeypatch.setattr(table, "_measured_by", lambda row: row["features"]["name"])
    assert table.best_run(store, "psnr")[0].id == run.id


def test_the_next_command_encodes(run: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    """After training and of `runs show`, the proposed command uses the run; that of another family draws samples."""
    runs.show("ae")
    assert f"Next:  genflow encode {run.meta['dataset']} --autoencoder {run.id}\n" in capsys.readouterr().out
    assert dispatch.use_of("r", "autoencoder", None) == "genflow encode DATASET --autoencoder r"
    assert dispatch.use_of("r", "vae", "d") == "genflow sample r"
    assert dispatch.use_of("r", "vae", "d", "serve r") == "genflow serve r"
