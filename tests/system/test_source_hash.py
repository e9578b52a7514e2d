"""The hash of the code that made an artifact."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from genflow.system import source_hash


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the checkout's rooms that `code` takes for its own."""
    root, ignore = source_hash.PACKAGE.parent, shutil.ignore_patterns("__pycache__")
    for room in ("genflow/data", "jobs"):
        shutil.copytree(root / room, tmp_path / room, ignore=ignore)
    monkeypatch.setattr(source_hash, "PACKAGE", tmp_path / "genflow")
    source_hash.fingerprint.cache_clear()
    yield tmp_path
    source_hash.fingerprint.cache_clear()


def test_changes_with_the_source_alone(copy: Path) -> None:
    """A changed line changes the hash; compiled files do not; the order of rooms does not matter."""
    rooms = ("genflow/data", "jobs/prepare.py")
    before = source_hash.fingerprint(*rooms)
    (copy / "genflow/data/__pycache__").mkdir()
    (copy / "genflow/data/__pycache__/x.pyc").write_bytes(b"x")
    source_hash.fingerprint.cache_clear()
    assert source_hash.fingerprint(*reversed(rooms)) == before
    with open(copy / "jobs/prepare.py", "a") as file:
        file.write("# changed\n")
    source_hash.fingerprint.cache_clear()
    assert source_hash.fingerprint(*rooms) != before


def test_a_wheel_has_the_same_hash(copy: Path) -> None:
    """In a wheel `jobs/` lies in genflow/_home, and the hash is that of the checkout."""
    rooms = ("genflow/data", "jobs/prepare.py")
    before = source_hash.fingerprint(*rooms)
    (copy / "genflow/_home").mkdir()
    shutil.move(copy / "jobs", copy / "genflow/_home/jobs")
    source_hash.fingerprint.cache_clear()
    assert source_hash.resources_dir() == copy / "genflow/_home"
    assert source_hash.fingerprint(*rooms) == before


def test_unknown_room() -> None:
    """A room that does not exist is a programming error."""
    with pytest.raises(FileNotFoundError):
        source_hash.fingerprint("genflow/nowhere")
