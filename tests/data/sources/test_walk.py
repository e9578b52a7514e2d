"""Listing a folder: system files that are passed over, and other files by kind."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, features

from genflow.data import images, skipped
from genflow.data.images import FORMATS, UnreadableImage, decode_for_dataset
from genflow.data.shards import Dataset
from genflow.data.sources.walk import list_folder, system_file
from genflow.errors import DataError
from genflow.specs import DataSpec

HEIC_HEAD = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + b"\0" * 40
SYSTEM_NAMES = (
    "@eaDir", ".@__thumb", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot", "$RECYCLE.BIN", "__MACOSX",
    "System Volume Information", "lost+found", ".Trash-1000", ".Trashes", ".Spotlight-V100", ".thumbnails",
    ".picasaoriginals", "Lightroom Catalog Previews.lrdata", ".git", ".ipynb_checkpoints", ".cache", ".stversions",
)  # fmt: skip


def picture(path: Path, kind: str = "PNG", red: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, 20, 30)).save(path, kind)
    return path


def without_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "formats", lambda: FORMATS)


def test_system_folders_are_passed_over(tmp_path: Path) -> None:
    """Pictures in the folders that systems and storages leave are not listed; each folder has a reason."""
    picture(tmp_path / "cats" / "1.png")
    for name in SYSTEM_NAMES:
        picture(tmp_path / "cats" / name / "1.png" / "SYNOPHOTO_THUMB_XL.jpg", "JPEG")
    listing = list_folder(str(tmp_path))
    assert [name for name, _, _ in listing.pictures] == ["cats/1.png"]
    assert listing.passed.total() == len(SYSTEM_NAMES)
    assert "hidden" not in listing.passed
    assert listing.passed["@eaDir folder (Synology thumbnails)"] == 1


@pytest.mark.parametrize("name", ["._1.png", "Thumbs.db", "ehthumbs.db", "Desktop.ini", ".DS_Store", "1.png~"])
def test_system_files_are_passed_over(tmp_path: Path, name: str) -> None:
    """Files that systems and editors leave have a reason of their own, whatever they contain."""
    picture(tmp_path / name)
    assert list_folder(str(tmp_path)).pictures == []
    assert system_file(name) not in ("", "hidden")


def test_an_apple_library_is_read_without_its_thumbnails(tmp_path: Path) -> None:
    """Only the originals of a photo library are pictures; a folder of that name elsewhere is an ordinary folder."""
    picture(tmp_path / "My.photoslibrary" / "originals" / "1" / "a.jpg", "JPEG")
    picture(tmp_path / "My.photoslibrary" / "resources" / "derivatives" / "a.jpg", "JPEG")
    picture(tmp_path / "resources" / "b.png")
    for root, expected in ((tmp_path, 2), (tmp_path / "My.photoslibrary", 1)):
        assert len(list_folder(str(root)).pictures) == expected


def test_kinds_of_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that are not supported are counted by kind; a raw photo is not read as its TIFF thumbnail."""
    without_heic(monkeypatch)
    contents = {
        **dict.fromkeys(("1.HEIC", "2.heic", "3"), HEIC_HEAD),
        "a.NEF": b"II*\0", "b.svg": b"<svg/>", "c.mov": b"x", "d.parquet": b"PAR1", "e.zip": b"PK",
        "f.txt": b"x", "g": b"x", "h.psd": b"8BPS",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    picture(tmp_path / "really-a-jpeg.heic", "JPEG")
    listing = list_folder(str(tmp_path))
    assert [name for name, _, _ in listing.pictures] == ["really-a-jpeg.heic"]
    assert listing.skipped(["d.parquet"]) == {
        "HEIC file": 3, "camera raw file (.nef)": 1, "SVG file": 1, "video (.mov)": 1, "archive (.zip)": 1,
        "other file (.txt)": 1, "other file (no ending)": 1, "Photoshop file": 1,
    }  # fmt: skip
    text = skipped.describe(listing.skipped())
    assert text.startswith('3 HEIC files (pip install "genflow-ray[heic]" reads them), 1 ')


def test_no_kind_is_dropped_from_a_long_list(tmp_path: Path) -> None:
    """The counts add up, also if there are more kinds than are listed."""
    for number in range(30):
        (tmp_path / f"a.x{number}").write_bytes(b"x")
    assert sum(list_folder(str(tmp_path)).skipped().values()) == 30


def test_a_folder_of_heic_names_the_command(tmp_path: Path, prepared: Callable[..., Dataset],
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Without the decoder, the hint is the command that installs it, also for HEIC files named .jpg."""
    without_heic(monkeypatch)
    for folder, ending in (("phone", "heic"), ("renamed", "jpg")):
        (tmp_path / folder).mkdir()
        for number in range(5):
            (tmp_path / folder / f"{number}.{ending}").write_bytes(HEIC_HEAD)
        with pytest.raises(DataError) as caught:
            prepared(tmp_path / folder)
        assert caught.value.hint == 'pip install "genflow-ray[heic]"'
        assert "HEIC" in caught.value.message


@pytest.mark.skipif(not importlib.util.find_spec("pillow_heif"), reason="pillow-heif is not installed")
def test_heic_is_read(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """With the decoder, HEIC files are pictures, whatever their ending."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    picture(tmp_path / "x" / "a.HEIC", "HEIF")
    picture(tmp_path / "x" / "b.jpg", "HEIF", red=200)
    dataset = prepared(tmp_path / "x", val=0)
    for pixels, red in zip(dataset.splits["train"].pixels, (10, 200), strict=True):
        assert abs(pixels.astype(int) - (red, 20, 30)).max() <= 8
    assert dataset.artifact.meta["skipped"] == {}


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """AVIF files are pictures if Pillow decodes them."""
    picture(tmp_path / "x" / "a.avif", "AVIF")
    picture(tmp_path / "x" / "b.png", red=200)
    assert prepared(tmp_path / "x", val=0).facts.splits == {"train": 2}


def test_a_request_is_not_decoded_as_heic() -> None:
    """A picture that a client sends has one of the six formats that Pillow always reads."""
    with pytest.raises(UnreadableImage, match="HEIC is not accepted: convert"):
        decode_for_dataset(io.BytesIO(HEIC_HEAD), DataSpec((3, 8, 8), 256, ()))
