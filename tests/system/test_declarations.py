"""A constant of a module, read without importing it."""

from pathlib import Path

import pytest

from genflow.system.declarations import constant


def test_a_constant_that_is_computed_is_refused(tmp_path: Path) -> None:
    """A value is made of literals and the constructors of its vocabulary; a name or another call cannot be read."""
    file = tmp_path / "module.py"
    file.write_text("raise SystemExit\nA = ('x', 1)\nB = dict(a=1)\nC = sys.argv\n")
    assert constant(file, "A") == ("x", 1)
    assert constant(file, "B", {"dict": dict}) == {"a": 1}
    assert constant(file, "D") is None
    for name in "BC":
        with pytest.raises(ValueError, match=f"{name} is not a literal"):
            constant(file, name)
