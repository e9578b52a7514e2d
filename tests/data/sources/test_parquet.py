"""Parquet and Arrow files, from `datasets` and from other tools."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genflow.data.shards import Dataset
from genflow.data.sources.find import find
from genflow.errors import DataError
from genflow.recipe.schema import Data

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 6, 6)).astype(np.uint8)
LABELS = [number % 3 for number in range(30)]


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


ENCODED = [png(image) for image in IMAGES]


def forms() -> dict[str, pa.Array]:
    """The same pictures as a column of every supported type."""
    flat = pa.array(IMAGES.ravel())
    fixed = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, 6), 6)
    return {
        "struct": pa.array([{"bytes": data, "path": None} for data in ENCODED]),
        "binary": pa.array(ENCODED),
        "large_binary": pa.array(ENCODED, pa.large_binary()),
        "nested": pa.array(IMAGES.tolist(), pa.list_(pa.list_(pa.uint8()))),
        "fixed": fixed,
        "channels_last": pa.array(IMAGES[..., None].tolist(), pa.list_(pa.list_(pa.list_(pa.int64())))),
        "channels_first": pa.array(np.stack([IMAGES] * 3, 1).tolist()),
        "flat": pa.array(IMAGES.reshape(30, 36).tolist(), pa.list_(pa.uint8())),
        "fractions": pa.array((IMAGES / np.float32(255)).tolist(), pa.list_(pa.list_(pa.float32()))),
    }


def write(path: Path, table: pa.Table, kind: str) -> Path:
    if kind == "parquet":
        pq.write_table(table, path.with_suffix(".parquet"), row_group_size=7)
        return path.with_suffix(".parquet")
    opened = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with pa.OSFile(str(path.with_suffix(".arrow")), "wb") as sink, opened(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=11)
    return path.with_suffix(".arrow")


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
@pytest.mark.parametrize("form", list(forms()))
def test_every_form(tmp_path: Path, prepared: Callable[..., Dataset], form: str, kind: str) -> None:
    """Pictures are bit-exact for every column type and every file type."""
    table = pa.table({"id": list(range(30)), "image": forms()[form], "label": LABELS})
    dataset = prepared(write(tmp_path / "data", table, kind), val=0.2)
    found: dict[str, Any] = {}
    for split in dataset.splits.values():
        found |= {id: (pixels, label) for id, pixels, label in zip(split.ids, split.pixels, split.labels, strict=True)}
    suffix = "parquet" if kind == "parquet" else "arrow"
    for number in range(30):
        pixels, label = found[f"data.{suffix}#{number}"]
        assert (pixels[:, :, 0] == IMAGES[number]).all()
        assert label == LABELS[number]


def test_labels(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """Strings, sparse integers, dictionaries and booleans are labels; floats are not."""
    words = [("ant", "bee", "cow")[label] for label in LABELS]
    for name, labels, names in (
        ("words", pa.array(words), ("ant", "bee", "cow")),
        ("codes", pa.array(words).dictionary_encode(), ("ant", "bee", "cow")),
        ("sparse", pa.array([10 + 90 * label for label in LABELS]), ("10", "100", "190")),
        ("bools", pa.array([label > 0 for label in LABELS]), ("False", "True")),
        ("floats", pa.array([0.5 * label for label in LABELS]), ()),
    ):
        table = pa.table({"img": pa.array(ENCODED), "y": labels})
        dataset = prepared(write(tmp_path / name, table, "parquet"), val=0)
        assert dataset.facts.class_names == names
        if len(names) == 3:
            assert dataset.splits["train"].labels.tolist() == LABELS


def test_a_declared_class_that_train_lacks(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """A class of `datasets` that only the test split has is refused; one that occurs nowhere is kept."""
    features = {"label": {"names": ["x", "y", "z"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for split, labels in (("train", [0, 1]), ("test", [2])):
        table = pa.table({"image": ENCODED[: len(labels)], "label": labels}).replace_schema_metadata(metadata)
        write(tmp_path / split, table, "parquet")
    with pytest.raises(DataError, match="test has the class z, which is not in train"):
        prepared(tmp_path)
    (tmp_path / "test.parquet").unlink()
    assert prepared(tmp_path, val=0).facts.class_names == ("x", "y", "z")


@pytest.mark.parametrize("option", ["labels", "captions"])
def test_a_column_that_only_some_files_have(tmp_path: Path, prepared: Callable[..., Dataset], option: str) -> None:
    """The file that is first by name decides nothing: labels and captions of another file are not dropped."""
    column = {"labels": {"label": [0, 1]}, "captions": {"text": ["a b", "c d"]}}[option]
    write(tmp_path / "test", pa.table({"image": ENCODED[2:4]}), "parquet")
    write(tmp_path / "train", pa.table({"image": ENCODED[:2], **column}), "parquet")
    name = next(iter(column))
    with pytest.raises(DataError, match=f"test.parquet has no column '{name}', but train.parquet has") as caught:
        prepared(tmp_path)
    assert caught.value.hint == f"add the column, or use --{option} none"
    assert prepared(tmp_path, **{option: "none"}).facts.splits == {"train": 2, "test": 2}


def test_fractions_in_one_split(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """A column that has fractions in one split gives no labels for any."""
    for split, labels in (("train", [0.0, 1.0]), ("test", [0.5, 0.0])):
        write(tmp_path / split, pa.table({"image": ENCODED[:2], "label": labels}), "parquet")
    dataset = prepared(tmp_path, val=0)
    assert dataset.facts.class_names == ()
    assert "the column 'label' of test.parquet has fractions: it is no label" in dataset.artifact.meta["warnings"]


def test_lists_next_to_tables_are_named(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """A list of labels next to Parquet files is not read, and a warning says so."""
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "a", pa.table({"image": ENCODED[:2]}), "parquet")
    (tmp_path / "set" / "labels.csv").write_text("row,label\n0,cat\n1,dog\n", encoding="utf-8")
    line = "labels.csv is not read for labels or captions; the labels and captions of Parquet and Arrow files are their"
    assert prepared(tmp_path / "set", val=0).artifact.meta["warnings"] == [f"{line} columns"]


def test_saved_by_datasets(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """A folder that `datasets` saved is a source, with its splits and class names."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])})
    rows = {"image": [Image.fromarray(image) for image in IMAGES], "label": LABELS}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=whole, test=whole.select(range(5))).save_to_disk(tmp_path / "saved")
    dataset = prepared(tmp_path / "saved", val=0)
    assert dataset.facts.splits == {"train": 30, "test": 5}
    assert dataset.facts.class_names == ("x", "y", "z")
    assert (dataset.splits["train"].pixels[..., 0] == IMAGES).all()


def test_own_shards(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """A prepared dataset is also a source, and keeps its grey levels."""
    digits = prepared("digits")
    again = prepared(digits.artifact.path, name="again")
    assert again.facts.levels == 17
    assert again.facts.splits == digits.facts.splits
    assert again.facts.mean == digits.facts.mean


def test_splits_by_name(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """Files named train-... and test-... are splits."""
    table = pa.table({"image": pa.array(ENCODED)})
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write(tmp_path / name, table, "parquet")
    assert prepared(tmp_path, val=0, name="x").facts.splits == {"train": 60, "test": 30}


def test_bad_cells(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """Nulls, broken bytes and ragged lists become bad records with a reason."""
    encoded = pa.array([*ENCODED[:3], None, b"junk", ENCODED[0][:50]])
    dataset = prepared(write(tmp_path / "a", pa.table({"image": encoded}), "parquet"), max_bad=3, val=0)
    assert dataset.artifact.file("bad.csv").read_text(encoding="utf-8").splitlines()[1:3] == [
        "a.parquet#3,the cell has no bytes",
        'a.parquet#4,"not a PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or HEIC"',
    ]
    ragged = pa.array([[[1, 2], [3, 4]], [[1, 2], [3]], None], pa.list_(pa.list_(pa.uint8())))
    dataset = prepared(write(tmp_path / "b", pa.table({"image": ragged}), "file"), max_bad=2, val=0)
    skipped = dataset.artifact.file("bad.csv").read_text(encoding="utf-8")
    assert "the rows of the picture have different lengths" in skipped


def test_mistakes(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """A missing picture column, missing labels and damaged files are errors."""
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 junk")
    (tmp_path / "junk.arrow").write_bytes(b"")
    write(tmp_path / "none", pa.table({"a": [1.0], "b": ["x"]}), "parquet")
    write(tmp_path / "null", pa.table({"image": ENCODED[:2], "label": [1, None]}), "parquet")
    for name, text in {
        "junk.parquet": "not a readable Parquet file",
        "junk.arrow": "not a readable Arrow file",
        "none.parquet": r"no column of pictures; its columns: a \(double\), b \(string\)",
        "null.parquet": "null.parquet#1 has no label",
    }.items():
        with pytest.raises(DataError, match=text):
            prepared(tmp_path / name)


def test_upper_case_endings_and_lists_of_pictures(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """`X.PARQUET` and `X.ARROW` are read; of a list of pictures, the first is used, and a warning says so."""
    cells = pa.array([[{"bytes": data, "path": None}] * (1 + number % 2) for number, data in enumerate(ENCODED)])
    table = pa.table({"images": cells})
    upper = write(tmp_path / "a", table, "parquet").rename(tmp_path / "A.PARQUET")
    arrow = write(tmp_path / "b", table, "stream").rename(tmp_path / "B.ARROW")
    for file in (upper, arrow):
        dataset = prepared(file, val=0)
        assert (dataset.splits["train"].pixels[..., 0] == IMAGES).all()
    source = find(Data(source=str(upper)))
    source.class_names()
    source.splits()
    assert source.notes == ["each row of the column 'images' is a list; only its first picture is used"]
    empty = pa.table({"images": pa.array([[], [{"bytes": ENCODED[0], "path": None}], None], cells.type)})
    with pytest.raises(DataError, match="the row has no picture"):
        prepared(write(tmp_path / "c", empty, "parquet"))


@pytest.mark.parametrize("form", ["struct", "path only", "text"])
def test_paths_of_files(tmp_path: Path, prepared: Callable[..., Dataset], form: str) -> None:
    """A cell with a path and no bytes is the file next to the table; a changed file makes another dataset."""
    folder = tmp_path / "set"
    (folder / "tables").mkdir(parents=True)
    paths = [f"{number}.png" for number in range(30)]
    for path, data in zip(paths, ENCODED, strict=True):
        (folder / "tables" / path).write_bytes(data)
    cells = {
        "struct": [{"bytes": None, "path": path} for path in paths],
        "path only": [{"path": path} for path in paths],
        "text": paths,
    }[form]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if form == "struct" else None
    file = write(folder / "tables" / "a", pa.table({"image": pa.array(cells, kind)}), "parquet")
    dataset = prepared(file, val=0)
    assert (dataset.splits["train"].pixels[..., 0] == IMAGES).all()
    (folder / "tables" / "0.png").write_bytes(png(IMAGES[0] ^ 255))
    assert prepared(file, val=0).artifact.id != dataset.artifact.id


def test_paths_without_files(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """Missing files and paths outside the folder are bad records; the hint does not propose to skip all of them."""
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(ENCODED[0])
    paths = ["missing.png", "../secret.png", str(tmp_path / "secret.png"), "gone.png", "lost.png"]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": None, "path": path} for path in paths], kind)
    file = write(tmp_path / "in" / "a", pa.table({"image": cells}), "parquet")
    with pytest.raises(DataError, match="no such file in the folder of the table") as caught:
        prepared(file)
    assert "outside the folder of the table" in caught.value.message
    assert caught.value.hint == (
        "the table names picture files: put them next to it, or use their folder as the source"
    )


def test_offsets_outside_an_arrow_file(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """A picture that is declared longer than its file is an error, and does not end the process."""
    file = write(tmp_path / "a", pa.table({"image": ENCODED[:1]}), "stream")
    right, wrong = (struct.pack("<ii", 0, length) for length in (len(ENCODED[0]), 2**30))
    before, _, after = file.read_bytes().rpartition(right)
    file.write_bytes(before + wrong + after)
    with pytest.raises(DataError, match=r"a\.arrow is (damaged|not a readable Arrow file): .*1073741824"):
        prepared(file)
    pq.write_table(pa.table({"image": pa.nulls(2_000_000, pa.binary())}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"declares 2,000,000 rows and has [\d,]+ bytes"):
        prepared(tmp_path / "b.parquet")
