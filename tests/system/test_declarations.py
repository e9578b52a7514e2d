"""Reading a constant of a module without importing the module."""

from pathlib import Path

import pytest

from genflow.system.declarations import constant


def test_a_computed_constant_is_an_error(tmp_path: Path) -> None:
    """Literals and the constructors of the vocabulary can be read; a name or another call is an error."""
    file = tmp_path / "module.py"
    file.write_text("raise SystemExit\nA = ('x', 1)\nB = dict(a=1)\nC = sys.argv\n", encoding="utf-8")
    assert constant(file, "A") == ("x", 1)
    assert constant(file, "B", {"dict": dict}) == {"a": 1}
    assert constant(file, "D") is None
    for name in "BC":
        with pytest.raises(ValueError, match=f"{name} is not a literal"):
            constant(file, name)
