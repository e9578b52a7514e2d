"""Labels and captions that other tools write next to pictures, from the folder to the shards."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import Data
from genflow.storage.store import Store


def pictures(folder: Path, names: list[str]) -> Path:
    """Write colour pictures that all differ."""
    rng = np.random.default_rng(len(names))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / name)
    return folder


def prepared(source: Path, **options) -> tuple[Dataset, list[str]]:
    """Prepare a source without held-out rows; return the dataset and its warnings."""
    store = Store(source.parent / "store")
    artifact, _ = prepare(store, Data(source=str(source), val=0, **options), in_process, lambda *_, **__: None)
    return Dataset.open(artifact), artifact.meta["warnings"]


def rows(dataset: Dataset) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The class and the captions of each row, by the file's name."""
    split, names = dataset.splits["train"], dataset.facts.class_names
    found = zip(split.ids, split.labels, split.captions, strict=True)
    return {id: (names[label] if names else "", texts) for id, label, texts in found}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_gives_labels_and_captions(tmp_path, kind):
    """`metadata.*` of the `datasets` library names the class and the caption of each picture, also in subfolders."""
    source = pictures(tmp_path / "set", ["a/1.png", "a/2.png", "b/3.png", "b/4.png"])
    table = [{"file_name": f"{n}.png", "label": "cat" if n % 2 else "dog", "text": f"number {n}"} for n in (1, 2)]
    (source / "a/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    table = [{"file_name": f"{n}.png", "label": "cat" if n % 2 else "dog", "text": f"number {n}"} for n in (3, 4)]
    if kind == "jsonl":
        (source / "b/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    elif kind == "csv":
        lines = [",".join(row.values()) for row in table]
        (source / "b/metadata.csv").write_text("\ufefffile_name,label,text\n" + "\n".join(lines), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(table), source / "b/metadata.parquet")
    dataset, warnings = prepared(source)
    assert rows(dataset) == {
        "a/1.png": ("cat", ("number 1",)), "a/2.png": ("dog", ("number 2",)),
        "b/3.png": ("cat", ("number 3",)), "b/4.png": ("dog", ("number 4",)),
    }  # fmt: skip
    assert any("not the 2 folders" in warning for warning in warnings)
    by_folder, _ = prepared(source, labels="folders")
    assert by_folder.facts.class_names == ("a", "b")
    assert by_folder.splits["train"].captions == dataset.splits["train"].captions
    assert prepared(source, labels="none")[0].facts.class_names == ()


def test_a_text_may_hold_other_line_ends(tmp_path):
    """U+2028 inside a caption is no end of a line of JSON."""
    source = pictures(tmp_path / "set", ["1.png", "2.png"])
    rows_ = [{"file_name": f"{n}.png", "text": f"a\u2028b {n}"} for n in (1, 2)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_)
    (source / "metadata.jsonl").write_text(text, encoding="utf-8")
    assert prepared(source)[0].splits["train"].captions == [("a\u2028b 1",), ("a\u2028b 2",)]


def test_a_column_decides_by_hand(tmp_path):
    """`--labels COLUMN` takes another column, with whole floats as integers; an unknown one lists the columns."""
    source = pictures(tmp_path / "set", ["1.png", "2.png"])
    table = [{"file_name": f"{n}.png", "kind": float(n), "label": "same"} for n in (1, 2)]
    (source / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    assert prepared(source, labels="kind")[0].facts.class_names == ("1", "2")
    with pytest.raises(UsageError, match="no column 'knd'") as error:
        prepared(source, labels="knd")
    assert "kind" in error.value.hint


def test_sidecars_are_captions(tmp_path):
    """`NAME.txt` and `NAME.caption` hold one caption a line; pictures without one are counted."""
    source = pictures(tmp_path / "set", ["1.png", "2.png", "3.png", "4.png"])
    (source / "1.txt").write_text("a cat\n\na small cat\n", encoding="utf-8")
    (source / "2.caption").write_text("ein Hündchen", encoding="utf-8")
    (source / "3.txt").write_text(" \n", encoding="utf-8")
    (source / "4.txt").write_text("0 0.5 0.5 0.1 0.1\n", encoding="utf-8")  # boxes of YOLO
    dataset, warnings = prepared(source)
    assert dataset.splits["train"].captions == [("a cat", "a small cat"), ("ein Hündchen",), (), ()]
    assert any("2 of 4 pictures have no caption, first 3.png" in warning for warning in warnings)
    assert any("2 caption files are empty or hold numbers alone, first 3.txt" in warning for warning in warnings)
    assert "other file (.txt)" not in dataset.artifact.meta["skipped"]


def test_datasets_reads_the_captions(tmp_path):
    """The column `captions` is a list of texts for the `datasets` library."""
    datasets = pytest.importorskip("datasets")
    source = pictures(tmp_path / "set", ["1.png", "2.png"])
    (source / "1.txt").write_text("a cat", encoding="utf-8")
    dataset, _ = prepared(source)
    assert datasets.load_from_disk(str(dataset.artifact.path))["train"]["captions"][:] == [["a cat"], []]


def test_a_changed_caption_is_another_dataset(tmp_path):
    """Captions are part of the content address."""
    source = pictures(tmp_path / "set", ["1.png", "2.png"])
    (source / "1.txt").write_text("a cat", encoding="utf-8")
    before, _ = prepared(source)
    (source / "1.txt").write_text("a dog, now", encoding="utf-8")
    assert prepared(source)[0].artifact.id != before.artifact.id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a"}\n', "line 1 has no 'file_name'"),
        ('{"file": "1.png"}\n', "has no 'file_name', but 'file'"),
        ('{"file_name": "1.png"\n', "line 1 is not JSON"),
        ("[1]\n", "line 1 is not a JSON object"),
        ('{"file_name": "9.png", "text": "a"}\n', "names no picture of its folder"),
        ('{"file_name": "1.png", "label": "a"}\n', "1 of 2 pictures have no 'label'"),
    ],
)
def test_bad_metadata_is_one_line(tmp_path, text, message):
    """A damaged or incomplete table is an error that names the line or the picture."""
    source = pictures(tmp_path / "set", ["1.png", "2.png"])
    (source / "metadata.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        prepared(source)


def test_an_unquoted_comma_is_an_error(tmp_path):
    """A CSV row with more cells than columns would lose the end of its caption."""
    source = pictures(tmp_path / "set", ["1.png", "2.png"])
    (source / "metadata.csv").write_text("file_name,text\n1.png,a cat, asleep\n2.png,b\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2 has more cells than columns"):
        prepared(source)


def test_repeated_rows_are_one_line(tmp_path):
    """Pictures that a table names twice are counted in one warning; a name from Windows is found."""
    source = pictures(tmp_path / "set", ["a/1.png", "a/2.png"])
    (source / "metadata.csv").write_text("file_name,text\n" + "a\\1.png,x\na\\2.png,y\n" * 2, encoding="utf-8")
    dataset, warnings = prepared(source)
    assert dataset.splits["train"].captions == [("x",), ("y",)]
    assert warnings == ["metadata.csv names 2 pictures more than once, first a/1.png; the first row of each counts"]


def test_labels_can_be_left_out_of_every_source(tmp_path):
    """`--labels none` applies to built-in data sets, too; a choice that a source lacks is refused."""
    store = Store(tmp_path / "store")
    digits = Data(source="digits", labels="none")
    assert Dataset.open(prepare(store, digits, in_process, lambda *_, **__: None)[0]).facts.classes == 0
    for labels in ("folders", "kind"):
        with pytest.raises(UsageError, match=f"--labels {labels}: digits has no such labels"):
            prepare(store, Data(source="digits", labels=labels), in_process, lambda *_, **__: None)


def test_captions_that_are_not_utf8_or_come_twice(tmp_path):
    """A caption in another encoding, and two kinds of captions, are errors."""
    source = pictures(tmp_path / "set", ["1.png", "2.png"])
    (source / "1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"1\.txt is not UTF-8"):
        prepared(source)
    (source / "1.txt").write_text("a", encoding="utf-8")
    (source / "metadata.csv").write_text("file_name,text\n1.png,b\n2.png,c\n", encoding="utf-8")
    with pytest.raises(DataError, match="has captions in metadata"):
        prepared(source)


def test_numbered_parts_are_no_classes(tmp_path):
    """Folders that split a set into parts become no classes, and a warning says so; digits stay classes."""
    source = pictures(tmp_path / "set", ["000/1.png", "000/2.png", "001/3.png", "001/4.png"])
    dataset, warnings = prepared(source)
    assert dataset.facts.class_names == ()
    assert any("--labels folders makes them classes" in warning for warning in warnings)
    assert prepared(source, labels="folders")[0].facts.class_names == ("000", "001")
    digits = pictures(tmp_path / "digits", ["0/1.png", "1/2.png"])
    assert prepared(digits)[0].facts.class_names == ("0", "1")


def test_tables_have_float_labels_and_captions(tmp_path):
    """Parquet labels that are whole floats are labels; a text column is kept as captions."""
    folder = pictures(tmp_path / "files", ["1.png", "2.png"])
    images = [{"bytes": (folder / f"{n}.png").read_bytes(), "path": None} for n in (1, 2)]
    table = {"image": images, "label": [3.0, 7.0], "text": ["a cat", None]}
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    dataset, _ = prepared(tmp_path / "set.parquet")
    assert dataset.facts.class_names == ("3", "7")
    assert dataset.splits["train"].captions == [("a cat",), ()]
    assert prepared(tmp_path / "set.parquet", labels="none")[0].facts.class_names == ()
    for labels in ("kind", "folders"):
        with pytest.raises(UsageError, match=f"no column of labels '{labels}'"):
            prepared(tmp_path / "set.parquet", labels=labels)


def test_kinds_of_columns_in_tables(tmp_path):
    """Captions may be dictionary-encoded or views; a missing float is an error, and a fraction is no label."""
    folder = pictures(tmp_path / "files", ["1.png", "2.png"])
    images = [{"bytes": (folder / f"{n}.png").read_bytes(), "path": None} for n in (1, 2)]
    for kind in (pa.dictionary(pa.int32(), pa.string()), pa.string_view(), pa.list_(pa.string())):
        texts = [["a"], ["b"]] if pa.types.is_list(kind) else ["a", "b"]
        table = pa.table({"image": images, "text": pa.array(texts, kind), "score": [0.5, 1.0], "label": [1.0, np.nan]})
        with pa.OSFile(str(tmp_path / "set.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        dataset, _ = prepared(tmp_path / "set.arrow", labels="none")
        assert dataset.splits["train"].captions == [("a",), ("b",)]
    with pytest.raises(DataError, match="#1 has no label"):
        prepared(tmp_path / "set.arrow")
    with pytest.raises(UsageError, match=r"fractions, first 0\.5"):
        prepared(tmp_path / "set.arrow", labels="score")
