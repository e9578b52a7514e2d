"""What a person names, and what is said if there is no such thing."""

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
        ("", "no source was named"),
        ("digit", r"unknown source 'digit'.*did you mean digits\?"),
        ("/no/such/folder", "no such file or folder"),
        ("s3://bucket/x", "is a URL"),
        ("a\0b", "unknown source"),
        ("x" * 5000, "is no path|unknown source"),
        ("/dev/null", "neither a file nor a folder"),
    ],
)
def test_unknown_sources(source: str, text: str) -> None:
    """Each mistake is one line that says what a source may be."""
    with pytest.raises(UsageError, match=text) as caught:
        find(Data(source=source))
    assert "\n" not in caught.value.message


def test_files_that_are_no_source(tmp_path: Path) -> None:
    """An archive is to be unpacked; a text is none."""
    for name, text in {"a.zip": "archive", "a.txt": "no file that can be prepared"}.items():
        (tmp_path / name).write_text("x")
        with pytest.raises(UsageError, match=text):
            find(Data(source=str(tmp_path / name)))


def test_densities_have_no_size() -> None:
    """A picture's options do not apply to points."""
    with pytest.raises(UsageError, match="no size and no channels"):
        find(Data(source="moons", size=32))


def test_fashion_must_be_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Debian's package, the command that installs it is named."""
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
    """A path may be relative or begin with ~; the current folder's name is the dataset's."""
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "a.png")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in (".", "../photos", "~/photos"):
        assert find(Data(source=text)).about == {"kind": "folder", "path": str(folder)}
        assert find(Data(source=text)).name == "photos"


def test_clean() -> None:
    """Any file's name becomes a dataset's name."""
    assert dataset_name("Ünï  cats!") == "n-cats"
    assert dataset_name("图片") == "data"
    assert dataset_name("x" * 100) == "x" * 60
