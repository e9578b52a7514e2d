"""A folder with several kinds of input is refused, and the error names the commands that choose one."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genflow.data.shards import Dataset
from genflow.data.sources.find import find
from genflow.errors import DataError
from genflow.recipe.schema import Data

PIXELS = np.zeros((4, 8, 8), np.uint8)


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")


def table(path: Path, column: str = "image") -> None:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: [file.getvalue()] * 3}), path)


def idx(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">HBB3I", 0, 8, 3, *PIXELS.shape) + PIXELS.tobytes())


def refusal(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        find(Data(source=str(path)))
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_pictures_and_a_table(tmp_path: Path) -> None:
    """Both are named with their place, and both commands of the hint work."""
    pictures(tmp_path / "images")
    table(tmp_path / "train.PARQUET")
    error = refusal(tmp_path)
    assert error.message.endswith("more than one kind of input: 3 pictures (images) and 1 table (train.PARQUET)")
    for choice, kind in (("images", "folder"), ("train.PARQUET", "table")):
        assert f"genflow prepare {tmp_path}/{choice}" in error.hint
        assert find(Data(source=str(tmp_path / choice))).about["kind"] == kind


def test_pictures_next_to_another_kind(tmp_path: Path) -> None:
    """If no folder contains the pictures alone, the hint proposes no command for them."""
    pictures(tmp_path)
    np.savez(tmp_path / "x.npz", images=PIXELS)
    assert refusal(tmp_path).hint == (
        f"choose one: genflow prepare {tmp_path}/x.npz, or move one kind to a folder of its own"
    )


def test_idx_and_pictures(tmp_path: Path) -> None:
    """Idx files and pictures are refused, also if the idx files are deeper."""
    for name in ("data", ""):
        pictures(tmp_path / f"x{name}" / "doc")
        idx(tmp_path / f"x{name}" / name)
        assert "3 pictures (doc) and 1 idx file" in refusal(tmp_path / f"x{name}").message


def test_arrays_and_tables(tmp_path: Path) -> None:
    """An .npz file of pictures and a table of pictures are refused."""
    np.savez(tmp_path / "x.npz", images=PIXELS)
    table(tmp_path / "y.parquet")
    assert "1 .npz file (x.npz) and 1 table (y.parquet)" in refusal(tmp_path).message


def test_files_without_pictures_are_no_input(tmp_path: Path) -> None:
    """Statistics next to pictures are skipped and counted, and a table of captions is no second input."""
    pictures(tmp_path)
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.zeros((3, 3)))
    pq.write_table(pa.table({"file_name": ["0.png"], "text": ["black"]}), tmp_path / "metadata.parquet")
    source = find(Data(source=str(tmp_path)))
    assert source.about["kind"] == "folder"
    source.class_names()
    assert source.skipped == {"array file (.npz)": 1}


def test_input_that_is_deeper(tmp_path: Path) -> None:
    """A folder whose only input is several .npz files, or deeper idx files, names the command."""
    for name in ("a", "b c"):
        (tmp_path / "arrays").mkdir(exist_ok=True)
        np.savez(tmp_path / "arrays" / f"{name}.npz", images=PIXELS)
    assert refusal(tmp_path / "arrays").hint == f"genflow prepare {tmp_path}/arrays/a.npz"
    idx(tmp_path / "repository" / "raw data")
    assert refusal(tmp_path / "repository").hint == f"genflow prepare '{tmp_path}/repository/raw data'"


def test_tables_of_different_columns(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """Files whose pictures are stored differently are refused with both names and types."""
    table(tmp_path / "train-0.parquet")
    pq.write_table(pa.table({"image": PIXELS.tolist()}), tmp_path / "train-1.parquet")
    with pytest.raises(DataError, match=r"'image' is list<.*> in train-1.parquet, but binary in train-0.parquet"):
        prepared(tmp_path)
    table(tmp_path / "train-1.parquet", column="img")
    with pytest.raises(DataError, match=r"train-1.parquet has no column 'image'"):
        prepared(tmp_path)


def test_system_files_next_to_tables_and_idx(tmp_path: Path) -> None:
    """Folders of tables and of idx files pass over system folders too, and count what they skip."""
    table(tmp_path / "table" / "a.parquet")
    idx(tmp_path / "idx")
    for kind in ("table", "idx"):
        table(tmp_path / kind / "@Recently-Snapshot" / "a.parquet")
        (tmp_path / kind / "photo.heif").write_bytes(b"x")
        source = find(Data(source=str(tmp_path / kind)))
        assert source.about["kind"] == kind
        assert source.skipped == {"HEIC file": 1, "@Recently-Snapshot folder (QNAP snapshots)": 1}
