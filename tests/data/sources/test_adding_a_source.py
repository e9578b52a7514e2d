"""docs/adding-a-source.md works: its source joins the registry, opens its files, and passes its own test."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, TESTS

from genflow.data import sources
from genflow.data.sources.find import find
from genflow.errors import UsageError
from genflow.recipe.schema import Data

GUIDE = (ROOT / "docs" / "adding-a-source.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^## \d\. .*?`([\w/.]+)`\n.*?```python\n(.*?)```", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The files of the page, with its source in a folder that is added to the registry."""
    folder, files = tmp_path / "sources", dict(BLOCKS)
    folder.mkdir()
    (folder / "pixel_csv.py").write_text(files["genflow/data/sources/pixel_csv.py"], encoding="utf-8")
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(folder)])
    yield files
    sys.modules.pop("genflow.data.sources.pixel_csv", None)
    vars(sources).pop("pixel_csv", None)


def test_the_page_has_a_source_and_a_test(guide: dict[str, str]) -> None:
    """The page has two files, and the registry tries its source last."""
    assert list(guide) == ["genflow/data/sources/pixel_csv.py", "tests/data/sources/test_pixel_csv.py"]
    assert list(sources.kinds().items())[-1] == ("pixel_csv", sources.Opens(files=(".csv",)))


def test_its_files_open_and_messages_list_their_type(guide: dict[str, str], tmp_path: Path) -> None:
    """A CSV file opens, and the hint about an unsupported file lists .csv."""
    for name in ("a.csv", "a.txt"):
        (tmp_path / name).write_text("label,pixel\nx,1\n", encoding="utf-8")
    assert find(Data(source=str(tmp_path / "a.csv"))).about["kind"] == "pixel_csv"
    with pytest.raises(UsageError) as refused:
        find(Data(source=str(tmp_path / "a.txt")))
    assert refused.value.hint.endswith(".ipc, .csv")


def test_its_test_passes(guide: dict[str, str], tmp_path: Path) -> None:
    """The test of the page passes in a pytest process whose registry has the source."""
    (tmp_path / "test_pixel_csv.py").write_text(guide["tests/data/sources/test_pixel_csv.py"], encoding="utf-8")
    joined = f"\nfrom genflow.data import sources\nsources.__path__.append({str(tmp_path / 'sources')!r})\n"
    fixtures = (TESTS / "conftest.py").read_text(encoding="utf-8")
    (tmp_path / "conftest.py").write_text(fixtures + joined, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_pixel_csv.py")]
    path = os.pathsep.join([str(ROOT), str(TESTS)])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, encoding="utf-8"
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr
