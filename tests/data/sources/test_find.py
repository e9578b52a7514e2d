"""Finding the source that a user names, and the errors if it does not exist."""

from pathlib import Path

import pytest

from genflow.data.sources import fashion
from genflow.data.sources.base import dataset_name
from genflow.data.sources.find import find
from genflow.errors import SetupError, UsageError
from genflow.recipe.schema import Data


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("", "no data source was given"),
        ("digit", r"unknown source 'digit'.*did you mean digits\?"),
        ("/no/such/folder", "no such file, folder or built-in data set"),
        ("s3://bucket/x", "is a URL"),
        ("a\0b", "unknown source"),
        ("x" * 5000, "is not a valid path|unknown source"),
        ("/dev/null", "neither a file nor a folder"),
    ],
)
def test_unknown_sources(source: str, text: str) -> None:
    """Each mistake gives a one-line error with the reason."""
    with pytest.raises(UsageError, match=text) as caught:
        find(Data(source=source))
    assert "\n" not in caught.value.message


def test_files_that_are_no_source(tmp_path: Path) -> None:
    """An archive and a text file are errors."""
    for name, text in {"a.zip": "is an archive", "a.txt": "is not a supported file"}.items():
        (tmp_path / name).write_text("x", encoding="utf-8")
        with pytest.raises(UsageError, match=text):
            find(Data(source=str(tmp_path / name)))


def test_densities_have_no_size() -> None:
    """The options of pictures do not apply to points."""
    with pytest.raises(UsageError, match="no size and no channels"):
        find(Data(source="moons", size=32))


def test_fashion_must_be_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Debian's package, the hint is the command that installs it."""
    monkeypatch.setattr(fashion, "FASHION", tmp_path / "none")
    with pytest.raises(SetupError) as caught:
        find(Data(source="fashion"))
    assert caught.value.hint == "apt-get install dataset-fashion-mnist"


@pytest.mark.skipif(not fashion.FASHION.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion() -> None:
    """Debian's Fashion-MNIST has 60,000 and 10,000 pictures of ten garments."""
    source = find(Data(source="fashion"))
    assert source.splits() == {"train": 60_000, "test": 10_000}
    assert source.class_names()[9] == "Ankle boot"


def test_relative_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may be relative or begin with ~; the dataset gets the name of the folder, also for `.`."""
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "a.png")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in (".", "../photos", "~/photos"):
        assert find(Data(source=text)).about == {"kind": "folder", "path": str(folder)}
        assert find(Data(source=text)).name == "photos"


def test_dataset_name() -> None:
    """Any file name gives a valid dataset name."""
    assert dataset_name("Ünï  cats!") == "n-cats"
    assert dataset_name("图片") == "data"
    assert dataset_name("x" * 100) == "x" * 60
