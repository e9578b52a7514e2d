"""Preparing on Ray: the same bytes as without it, one-line errors, and no Ray for a finished dataset."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genflow.data.shards import Dataset
from genflow.errors import DataError
from genflow.storage.store import Store
from genflow.system import events, source_hash
from jobs import prepare


def pets(path: Path, count: int = 300) -> Path:
    """Pictures of noise in two classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        file = path / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(file)
    return path


def run(source: Path | str, **options: Any) -> dict[str, Any]:
    return prepare.main({"recipe": {"data": {"source": str(source), **options}}}, lambda event, **fields: None)


@pytest.fixture
def other_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that the job uses, separate from the store of `prepared`."""
    monkeypatch.setenv("GENFLOW_STORE", str(tmp_path / "other"))
    return Store()


@pytest.mark.ray
def test_two_workers_write_the_same_bytes(
    ray_local: None, other_store: Store, prepared: Callable[..., Dataset], tmp_path: Path
) -> None:
    """Two Ray workers write the same files as this process, and the result describes the dataset."""
    folder = pets(tmp_path / "pets")
    expected = prepared(folder)
    result = run(folder)
    artifact = other_store.find("datasets", result["dataset"])
    assert artifact.manifest["files"] == expected.artifact.manifest["files"]
    assert result["schema"] == "genflow.prepare/1"
    assert (result["name"], result["path"], result["cached"]) == ("pets", str(artifact.path), False)
    assert (result["images"], result["bad"]) == (300, 0)
    assert list(result["facts"]["class_names"]) == ["cat", "dog"]
    assert len(expected.splits["train"].tables) == 3
    json.dumps(result)


@pytest.mark.ray
def test_errors_of_workers_are_raised_unchanged(ray_local: None, other_store: Store, tmp_path: Path) -> None:
    """A source that a worker finds damaged raises the same error as in this process."""
    file = tmp_path / "x-images-idx3-ubyte"
    file.write_bytes(b"\0\0\x08\x03" + (100).to_bytes(4, "big") + (4).to_bytes(4, "big") * 2 + b"\1" * 99)
    with pytest.raises(DataError, match="is truncated"):
        run(file)
    assert other_store.artifacts("datasets") == []


@pytest.mark.ray
def test_files_named_like_modules_do_not_disturb_the_job(tmp_path: Path) -> None:
    """The job runs as a command with its own Ray in a folder with ray.py, numpy.py, ...; a second run is cached."""
    folder = pets(tmp_path / "pets", 20)
    for name in ("ray", "numpy", "PIL", "pyarrow", "jobs", "token"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')\n", encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"recipe": {"data": {"source": str(folder)}}}), encoding="utf-8")
    environment = os.environ | {"GENFLOW_STORE": str(tmp_path / "store"), "PYTHONSAFEPATH": "1"}
    environment |= {"PYTHONPATH": str(source_hash.resources_dir())}
    documents = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "jobs.prepare", str(recipe)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        said = [event for event in map(events.parse, done.stdout.splitlines()) if event]
        documents.append(said[-1]["document"])
        assert done.stderr == ""
    assert [document["cached"] for document in documents] == [False, True]
    assert documents[0]["dataset"] == documents[1]["dataset"]
