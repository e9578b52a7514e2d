"""The hash of the code that made an artifact."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from genflow import code


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the checkout's rooms that `code` takes for its own."""
    for room in ("genflow/data", "jobs"):
        shutil.copytree(code.PACKAGE.parent / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "genflow")
    code.fingerprint.cache_clear()
    yield tmp_path
    code.fingerprint.cache_clear()


def test_changes_with_the_source_alone(copy: Path) -> None:
    """A changed line changes the hash; compiled files do not; the order of rooms does not matter."""
    rooms = ("genflow/data", "jobs/prepare.py")
    before = code.fingerprint(*rooms)
    (copy / "genflow/data/__pycache__").mkdir()
    (copy / "genflow/data/__pycache__/x.pyc").write_bytes(b"x")
    code.fingerprint.cache_clear()
    assert code.fingerprint(*reversed(rooms)) == before
    with open(copy / "jobs/prepare.py", "a") as file:
        file.write("# changed\n")
    code.fingerprint.cache_clear()
    assert code.fingerprint(*rooms) != before


def test_a_wheel_has_the_same_hash(copy: Path) -> None:
    """In a wheel `jobs/` lies in genflow/_home, and the hash is that of the checkout."""
    rooms = ("genflow/data", "jobs/prepare.py")
    before = code.fingerprint(*rooms)
    (copy / "genflow/_home").mkdir()
    shutil.move(copy / "jobs", copy / "genflow/_home/jobs")
    code.fingerprint.cache_clear()
    assert code.home() == copy / "genflow/_home"
    assert code.fingerprint(*rooms) == before


def test_unknown_room() -> None:
    """A room that does not exist is a programming error."""
    with pytest.raises(FileNotFoundError):
        code.fingerprint("genflow/nowhere")
