"""The checks of `genflow doctor` for this machine."""

import tempfile
from pathlib import Path

import pytest

from genflow.launch import local_checks


@pytest.mark.parametrize(
    ("have", "least", "is_enough"),
    [
        ("3.9.1", "3.11", False),  # as text, "3.9.1" is the larger one
        ("3.11", "3.11", True),
        ("3.14.0+", "3.11", True),
        ("2.13.0+cpu", "2.9", True),
        ("2.60.0rc1", "2.60", False),  # a release candidate precedes its release
        ("2.10.0.dev20251104+cu130", "2.9", True),
        ("unknown", "2.9", False),
    ],
)
def test_versions_are_compared_as_versions(have: str, least: str, is_enough: bool) -> None:
    """Versions are ordered by PEP 440, and text that is not a version never passes."""
    assert local_checks._is_at_least(have, least) is is_enough


def test_an_old_python_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.9.1 is reported as too old."""
    monkeypatch.setattr(local_checks.platform, "python_version", lambda: "3.9.1")
    assert not next(local_checks.checks()).ok


def test_an_old_package_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is too old fails its check, and the fix names the minimum version."""
    monkeypatch.setattr(local_checks.importlib.metadata, "version", lambda package: "2.8.9")
    check = local_checks._package("torch", "2.9")
    assert not check.ok
    assert "torch>=2.9" in check.cure


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_path_too_long_for_a_socket(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The line on temporary files gives the length, the limit, and the variable to set."""
    folder = tmp_path / ("x" * 80)
    folder.mkdir()
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)  # where Python keeps the folder that it found
    check = local_checks._temporary()
    assert not check.ok
    assert f"has {len(str(folder))} bytes, and Ray's sockets in it allow" in check.found
    assert check.cure == f"export {name}=/tmp"
    monkeypatch.setenv(name, "/tmp")
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert local_checks._temporary().ok
