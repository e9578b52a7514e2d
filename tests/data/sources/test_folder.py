"""Folders of pictures: order, classes, splits, links, and files that are not pictures."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.data.images import SUPPORTED
from genflow.data.shards import Dataset
from genflow.data.sources.base import BadRecord, ImageSpec, Record
from genflow.data.sources.folder import Folder, natural
from genflow.data.sources.parts import are_parts
from genflow.errors import DataError, UsageError


def picture(path: Path, level: int = 100, size: int = 8, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (size, size), level)
    image.putpixel((0, 0), 255 - level)
    image.convert(mode).save(path, "PNG")
    return path


def names(folder: Folder, split: str = "train") -> list[str]:
    part = folder.part(split, np.arange(folder.splits()[split]))
    return [record.id for record in part.records(ImageSpec(8, 1))]


def test_natural_order(tmp_path: Path) -> None:
    """2 sorts before 10, and the order of creation does not matter."""
    for name in ("10.png", "b.png", "2.png", "A3.png", "a12.png", "1.png"):
        picture(tmp_path / name)
    assert names(Folder("x", str(tmp_path))) == ["1.png", "2.png", "10.png", "A3.png", "a12.png", "b.png"]
    assert natural("07") != natural("7")


def test_one_folder_per_class(tmp_path: Path) -> None:
    """Class folders give labels in natural order, also for pictures in deeper folders."""
    for name in ("cat 10/a.png", "cat 2/x/y/z.png", "cat 2/b.png"):
        picture(tmp_path / name)
    folder = Folder("x", str(tmp_path))
    assert folder.class_names() == ("cat 2", "cat 10")
    part = folder.part("train", np.arange(3))
    assert [(r.id, r.label) for r in part.records(ImageSpec(8, 1)) if isinstance(r, Record)] == [
        ("cat 2/b.png", 0),
        ("cat 2/x/y/z.png", 0),
        ("cat 10/a.png", 1),
    ]


def test_flat_and_single_folder_have_no_labels(tmp_path: Path) -> None:
    """A single folder of pictures gives no classes, and neither does a flat folder."""
    picture(tmp_path / "images" / "a.png")
    assert Folder("x", str(tmp_path)).class_names() == ()
    assert Folder("x", str(tmp_path / "images")).class_names() == ()


def test_pictures_next_to_class_folders(tmp_path: Path) -> None:
    """If a picture is next to the class folders, the data has no labels, and a note reports it."""
    for name in ("a/1.png", "b/1.png", "stray.png"):
        picture(tmp_path / name)
    folder = Folder("x", str(tmp_path))
    assert folder.class_names() == ()
    assert "no labels" in folder.notes[0]


@pytest.mark.parametrize("name", ["stray.png", "a/2.png"])
def test_class_folders_that_are_asked_for_and_not_there(tmp_path: Path, name: str) -> None:
    """`--labels folders` is refused if the folders are no classes, because the data would have no labels."""
    picture(tmp_path / "a/1.png")
    picture(tmp_path / name)
    with pytest.raises(UsageError, match="has no two class folders"):
        Folder("x", str(tmp_path), "folders").class_names()
    picture(tmp_path / "b/1.png")
    if name == "stray.png":
        with pytest.raises(UsageError, match="has pictures next to its class folders"):
            Folder("x", str(tmp_path), "folders").class_names()


def test_split_folders(tmp_path: Path) -> None:
    """Folders named train, val and test are splits, with classes below them."""
    for name in ("train/a/1.png", "train/b/1.png", "train/b/2.png", "val/a/1.png", "test/b/1.png"):
        picture(tmp_path / name)
    folder = Folder("x", str(tmp_path))
    assert folder.splits() == {"train": 3, "val": 1, "test": 1}
    assert folder.class_names() == ("a", "b")


def test_test_class_that_train_lacks(tmp_path: Path) -> None:
    """A class in test that is not in train is an error."""
    for name in ("train/a/1.png", "train/b/1.png", "test/c/1.png"):
        picture(tmp_path / name)
    with pytest.raises(DataError, match="class c, which is not in train"):
        Folder("x", str(tmp_path)).class_names()


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ("000 001 002", True), ("img_001 img_002", True), ("00000 01000 03000", True),
        ("part-0 part-1 part-10", True), ("shard3 shard9", True), ("00000-of-00010 00001-of-00010", True),
        ("data_batch_1 data_batch_2", True), (" ".join(f"{n:02x}" for n in range(256)), True),
        (" ".join(f"{n:02X}" for n in range(150)), True), ("0 1 2 3 4 5 6 7 8 9 a b c d e f", True),
        ("0 1 2 3 4 5 6 7 8 9", False), ("00 01 02", False), ("cat dog", False), ("a b c", False),
        ("class000 class001", False), ("class_0 class_1", False), ("n01440764 n01443537", False), ("2019 2020", False),
        ("30 31 3a 4b 5c", False), ("part-0 cat", False), ("000 002", False), ("digit1 digit2", False),
    ],
)  # fmt: skip
def test_folders_of_parts(names: str, parts: bool) -> None:
    """Folders that cut a set into parts are recognised by the form of their names."""
    assert are_parts(set(names.split())) == parts


def test_files_that_are_not_pictures_are_counted(tmp_path: Path) -> None:
    """Hidden files, texts, pipes and broken links are skipped and counted; pictures with any suffix or none are not."""
    picture(tmp_path / "GOOD.PNG")
    picture(tmp_path / "no_suffix")
    picture(tmp_path / ".hidden.png")
    picture(tmp_path / ".folder" / "a.png")
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    (tmp_path / "Thumbs.db").write_bytes(b"\0" * 20)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    folder = Folder("x", str(tmp_path))
    assert names(folder) == ["GOOD.PNG", "no_suffix"]
    assert folder.skipped == {
        "hidden": 2,
        "other file (.txt)": 1,
        "Thumbs.db file (Windows thumbnails)": 1,
        "pipe, socket or device": 1,
        "broken link": 1,
    }


def test_wrong_suffix(tmp_path: Path) -> None:
    """A JPEG with the suffix .png is decoded by its content."""
    Image.new("L", (8, 8), 50).save(tmp_path / "a.png", "JPEG")
    records = list(Folder("x", str(tmp_path)).part("train", np.arange(1)).records(ImageSpec(8, 1)))
    assert isinstance(records[0], Record)


def test_odd_names(tmp_path: Path) -> None:
    """Names with spaces, newlines, other scripts and invalid UTF-8 give valid text ids."""
    for name in ("a b.png", "new\nline.png", "图片.png", "ü.png"):
        picture(tmp_path / name)
    os.rename(picture(tmp_path / "plain.png"), os.fsencode(tmp_path) + b"/\xff\xfe.png")
    found = names(Folder("x", str(tmp_path)))
    assert set(found) == {"a b.png", "new\nline.png", "图片.png", "ü.png", "\\xff\\xfe.png"}
    assert all(name.encode() for name in found)


def test_links(tmp_path: Path) -> None:
    """Links to files and folders are followed, also outside the source; loops end."""
    source, outside = tmp_path / "source", tmp_path / "outside"
    picture(source / "real.png")
    picture(outside / "far.png")
    (source / "alias.png").symlink_to(source / "real.png")
    (source / "out").symlink_to(outside)
    (source / "up").symlink_to(tmp_path)
    (source / "loop").symlink_to(source)
    (outside / "back").symlink_to(source)
    (source / "out2").symlink_to(outside)
    folder = Folder("x", str(source))
    assert names(folder) == ["alias.png", "out/far.png", "real.png"]
    assert folder.skipped == {"link to a folder that was entered before": 4}


def test_unreadable_pictures_become_bad_records(tmp_path: Path) -> None:
    """A broken picture gives a `BadRecord` with the reason, and its neighbours are decoded."""
    picture(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("this is no picture", encoding="utf-8")
    (tmp_path / "3.png").write_bytes(picture(tmp_path / "4.png").read_bytes()[:40])
    records = list(Folder("x", str(tmp_path)).part("train", np.arange(4)).records(ImageSpec(8, 1)))
    assert [type(record) for record in records] == [Record, BadRecord, BadRecord, Record]
    assert records[1] == BadRecord("2.png", f"not a {SUPPORTED}")


def test_no_pictures(tmp_path: Path) -> None:
    """The error about a folder without pictures counts the other files."""
    (tmp_path / "paper.pdf").write_bytes(b"x" * 20)
    with pytest.raises(DataError, match=r"no pictures in .*; skipped 1 PDF file"):
        Folder("x", str(tmp_path)).class_names()


def test_native_size_and_channels(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """Small pictures of one size keep it; mixed or large ones become 64; one colour picture gives three channels."""
    for number in range(4):
        picture(tmp_path / "same" / f"{number}.png", 90 + number, size=12)
        picture(tmp_path / "mixed" / f"{number}.png", size=20 + number)
        picture(tmp_path / "large" / f"{number}.png", 90 + number, size=80)
    assert prepared(tmp_path / "same").facts.shape == (1, 12, 12)
    assert prepared(tmp_path / "mixed").facts.shape == (1, 64, 64)
    assert prepared(tmp_path / "large").facts.shape == (1, 64, 64)
    assert prepared(tmp_path / "large", size=16, channels=3).facts.shape == (3, 16, 16)
    picture(tmp_path / "same" / "colour.png", size=12, mode="RGB")
    assert prepared(tmp_path / "same").facts.shape == (3, 12, 12)
