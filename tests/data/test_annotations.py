"""Labels and captions that other tools write next to pictures, from the folder to the shards."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genflow.data.plan import initial_spec
from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.data.sources.base import ImageSpec
from genflow.data.sources.find import find
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
    line = "metadata.csv names 2 pictures more than once, first a/1.png; all captions of a picture are kept"
    assert warnings == [line]


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
    with pytest.raises(DataError, match=r"1 picture, first 1\.png: 'b' in metadata\.csv, and 'a' in the \.txt files"):
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


def table(file: Path, columns: str, *rows: object) -> None:
    """Write a CSV file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([columns, *map(str, rows)]) + "\n", encoding="utf-8")


def test_two_metadata_files_are_put_together(tmp_path):
    """Captions in one file and labels in another are both kept; a contradiction is refused in one line."""
    source = pictures(tmp_path / "set", ["1.png", "2.png"])
    lines = [{"file_name": f"{n}.png", "text": f"number {n}"} for n in (1, 2)]
    (source / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    table(source / "metadata.csv", "file_name,label", "1.png,cat", "2.png,dog")
    expected = {"1.png": ("cat", ("number 1",)), "2.png": ("dog", ("number 2",))}
    assert rows(prepared(source)[0]) == expected
    table(source / "labels.csv", "file,Class", "1.png,cat", "2.png,dog")
    assert rows(prepared(source)[0]) == expected
    table(source / "labels.csv", "file,Class", "1.png,cat", "2.png,cow")
    with pytest.raises(DataError, match=r"for 1 picture, first 2\.png: 'cow' in labels\.csv, and 'dog' in") as error:
        prepared(source)
    assert error.value.hint.endswith("choose with --labels Class or --labels label")
    assert rows(prepared(source, labels="label")[0]) == expected
    (source / "2.txt").write_text("other", encoding="utf-8")
    with pytest.raises(DataError, match=r"2\.png: 'number 2' in metadata\.jsonl, and 'other' in the \.txt files"):
        prepared(source, labels="label")


def test_two_captions_files_of_one_picture(tmp_path):
    """`1.txt` and `1.caption` that differ are refused; `--captions` chooses one ending, or none."""
    source = pictures(tmp_path / "set", ["1.png", "2.png"])
    for ending in ("txt", "caption"):
        (source / f"1.{ending}").write_text("the same", encoding="utf-8")
        (source / f"2.{ending}").write_text(f"in {ending}", encoding="utf-8")
    with pytest.raises(DataError, match=r"first 2\.png: 'in txt' in the \.txt files, and 'in caption' in the") as error:
        prepared(source)
    assert error.value.hint.endswith("--captions .caption or --captions .txt")
    for ending in ("txt", "caption"):
        found = prepared(source, captions=f".{ending}")[0]
        assert found.splits["train"].captions == [("the same",), (f"in {ending}",)]
    dataset, warnings = prepared(source, captions="none")
    assert not dataset.facts.captions
    assert not [line for line in warnings if ".txt" in line or ".caption" in line]
    assert "captions" not in dataset.splits["train"].tables[0].column_names


def test_captions_by_hand(tmp_path):
    """`--captions COLUMN` takes a column; an unknown or empty one is refused; of two columns the warning names both."""
    source = pictures(tmp_path / "set", ["1.png", "2.png"])
    table(source / "metadata.csv", "file_name,text,prompt,n", "1.png,a,b c,1", "2.png,d,e f,2")
    dataset, warnings = prepared(source)
    assert dataset.splits["train"].captions == [("a",), ("d",)]
    assert any("several columns of captions: 'text' is used, not 'prompt'" in warning for warning in warnings)
    assert prepared(source, captions="prompt")[0].splits["train"].captions == [("b c",), ("e f",)]
    with pytest.raises(UsageError, match=r"no column 'x' in its metadata \(metadata\.csv\)") as error:
        prepared(source, captions="x")
    assert error.value.hint == "--captions with one of auto, none, n, prompt, text"
    for captions in ("x", "text"):
        with pytest.raises(UsageError, match=f"--captions {captions}: digits has no such captions"):
            prepare(Store(tmp_path), Data(source="digits", captions=captions), in_process, lambda *_, **__: None)
    assert not prepared(source, captions="none", labels="n")[0].facts.captions


def test_captions_of_a_built_in_set_can_be_left_out():
    """`--captions none` applies to sources that make their captions themselves."""
    for captions in ("auto", "none"):
        scenes = Data(source="scenes", captions=captions)
        assert initial_spec(find(scenes), scenes, ImageSpec(32, 3)).captions == (captions == "auto")


@pytest.mark.parametrize("kind", ["kaggle", "stylegan", "roboflow", "semicolons", "tabs", "parquet"])
def test_tables_of_other_tools(tmp_path, kind):
    """Tables that name pictures in the way of another tool give labels."""
    names = [f"train/{n}.png" for n in range(4)]
    source, kinds = pictures(tmp_path / "set", names), ["cat", "dog", "cat", "dog"]
    pairs = list(zip(names, kinds, strict=True))
    if kind == "kaggle":  # names without folder and ending
        table(source / "train.csv", "Id,Label", *(f"{n},{label}" for n, label in enumerate(kinds)))
        table(source / "sample_submission.csv", "Id,Label", *(f"{n},cat" for n in range(4)))
    elif kind == "stylegan":
        (source / "dataset.json").write_text(json.dumps({"labels": pairs}), encoding="utf-8")
    elif kind == "roboflow":
        lines = (f"{n}.png, {int(label == 'cat')}, {int(label == 'dog')}" for n, label in enumerate(kinds))
        table(source / "train/_classes.csv", "filename, cat, dog", *lines)
    elif kind == "semicolons":
        table(source / "labels.csv", "image;class", *(f"{name};{label}" for name, label in pairs))
    elif kind == "tabs":
        table(source / "labels.tsv", "path\ttarget", *(f"{name}\t{label}" for name, label in pairs))
    else:
        pq.write_table(pa.table({"image": names, "label": kinds}), source / "labels.parquet")
    dataset, warnings = prepared(source)
    assert {id: label for id, (label, _) in rows(dataset).items()} == dict(pairs)
    assert any("sample_submission.csv is not read" in warning for warning in warnings) == (kind == "kaggle")


@pytest.mark.parametrize(
    ("file", "text", "warning"),
    [
        ("metadata.json", "[]", "metadata.json is not read; write metadata.jsonl, one object a line"),
        ("labels.json", "{}", "labels.json is not read for labels or captions; write metadata.jsonl"),
        ("dataset.json", '{"labels": null}', "dataset.json is not read for labels or captions: its labels are null"),
        ("dataset.json", '{"labels": 3}', "dataset.json is not read for labels or captions: it is not of the form"),
        ("dataset.json", '{"labels": [["1.png", [0, 1]]]}', "column 'label' of dataset.json has lists, first [0, 1]"),
        ("train.txt", "a/1.png 3\n", "train.txt names pictures and is not read; write metadata.jsonl"),
        ("labels/1.txt", "0 0.5 0.5 0.1 0.1", "not read: 1 .txt file with the name of a picture in another folder"),
        ("labels.csv", "file,label\n9.png,a\n", "labels.csv is not read for labels or captions: no column of it names"),
        ("labels.csv", "file,label\n1.png,a\n1.png,b\n", "1 picture with several labels in the column 'label', first"),
        ("labels.csv", "file,label\n1.png,a,b\n", "labels.csv is not read for labels or captions: line 2 has more"),
        ("_classes.csv", "filename,a,b\n1.png,1,1\n", "a picture has one class, but 1.png has several"),
        ("labels.csv", "file,n\n1.png,7\n2.png,7\n", "labels.csv is not read for labels or captions: it has no"),
        ("labels.csv", "id,breed\n1,pug\n2,lab\n", "'breed' is not read from labels.csv; --labels breed uses it"),
        ("metadata.csv", "file_name,about\n1.png,a b\n2.png,c d\n", "--captions about uses it as captions"),
        ("labels.xlsx", "PK", "labels.xlsx is not read for labels or captions"),
    ],
)  # fmt: skip
def test_no_label_file_is_ignored_in_silence(tmp_path, file, text, warning):
    """A file that looks like labels or captions and is not read is named, with the reason or the cure."""
    source = pictures(tmp_path / "set", ["1.png", "2.png"])
    (source / file).parent.mkdir(exist_ok=True)
    (source / file).write_text(text, encoding="utf-8")
    dataset, warnings = prepared(source)
    assert dataset.facts.class_names == ()
    assert [line for line in warnings if warning in line], warnings
    assert not [line for line in prepared(source, labels="none", captions="none")[1] if Path(file).stem in line]


def test_a_name_that_two_pictures_have(tmp_path):
    """A file name that is not unique names no picture."""
    source = pictures(tmp_path / "set", ["a/1.png", "b/1.png"])
    table(source / "labels.csv", "file,label", "1.png,x")
    dataset, warnings = prepared(source)
    assert dataset.facts.class_names == ("a", "b")
    assert any("several pictures have the name '1.png'" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("values", "what"), [("0.5 1", r"fractions, first 0\.5"), ("[1,2] [3]", r"lists, first \[1, 2\]")]
)
def test_values_that_are_no_labels(tmp_path, values, what):
    """`--labels COLUMN` refuses fractions and lists, which are no labels without it; whole floats of a CSV are."""
    source = pictures(tmp_path / "set", ["1.png", "2.png"])
    found = [json.loads(value) for value in values.split()]
    lines = [{"file_name": f"{n}.png", "label": value} for n, value in enumerate(found, 1)]
    (source / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    for labels in ("label", "metadata"):
        with pytest.raises(UsageError, match=f"the column 'label' of metadata.jsonl has {what}"):
            prepared(source, labels=labels)
    dataset, warnings = prepared(source)
    assert dataset.facts.class_names == ()
    assert any("it is no label" in warning for warning in warnings)
    (source / "metadata.jsonl").unlink()
    table(source / "metadata.csv", "file_name,label", "1.png,3.0", "2.png,7.0")
    assert prepared(source)[0].facts.class_names == ("3", "7")


def test_a_class_that_train_lacks(tmp_path):
    """A class of a metadata file that only another split has is refused, as for class folders."""
    source = pictures(tmp_path / "set", ["train/1.png", "train/2.png", "val/3.png"])
    table(source / "metadata.csv", "file_name,label", "train/1.png,a", "train/2.png,b", "val/3.png,c")
    with pytest.raises(DataError, match="val has the class c, which is not in train"):
        prepared(source)
    assert prepared(source, labels="none")[0].facts.splits == {"train": 2, "val": 1}


def test_captions_of_tables_by_hand(tmp_path):
    """Parquet captions have the same option and the same warnings as those of metadata files."""
    folder = pictures(tmp_path / "files", ["1.png", "2.png"])
    images = [{"bytes": (folder / f"{n}.png").read_bytes(), "path": None} for n in (1, 2)]
    columns = {"image": images, "text": ["same", "same"], "about": ["a", None], "labels": [[1], [2]], "n": [1, 2]}
    file = tmp_path / "set.parquet"
    pq.write_table(pa.table(columns), file)
    dataset, warnings = prepared(file)
    assert dataset.splits["train"].captions == [("same",), ("same",)]
    assert any("all captions are 'same', so a model learns nothing" in warning for warning in warnings)
    assert "the column 'labels' of set.parquet is list<element: int64>, so it has no labels" in warnings
    assert any("the column 'n' is not read from set.parquet; --labels n uses it" in warning for warning in warnings)
    dataset, warnings = prepared(file, captions="about")
    assert dataset.splits["train"].captions == [("a",), ()]
    assert any("1 of 2 pictures have no caption, first set.parquet#1" in warning for warning in warnings)
    assert not prepared(file, captions="none")[0].facts.captions
    with pytest.raises(UsageError, match="no column of captions 'n'") as error:
        prepared(file, captions="n")
    assert error.value.hint == "--captions with one of auto, none, text, about"


@pytest.mark.parametrize("captions", ["auto", "text"])
def test_half_a_character(tmp_path, captions):
    """A lone surrogate, which UTF-8 cannot hold, is one line and not a failure of the writer."""
    source = pictures(tmp_path / "set", ["1.png"])
    (source / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a \\ud83d"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata\.jsonl line 1 has half a character"):
        prepared(source, captions=captions)
