"""The folder of sources is the registry: declarations are read without importing the modules."""

import subprocess
import sys

import pytest
from support import ROOT

from genflow.data import sources
from genflow.data.sources.densities import DENSITIES

KINDS = sources.kinds()


def test_modules_are_tried_in_their_declared_order() -> None:
    """Names come first, then files and folders; pictures come before tables, for a folder that contains both."""
    names = ["digits", "fashion", "densities", "emoji", "scenes", "stacked"]
    assert list(KINDS) == [*names, "idx", "npz", "folder", "parquet"]


def test_the_built_in_data_sets() -> None:
    """Messages and the help of `genflow prepare` list the built-in data sets in this order."""
    points = "grid25, grid25_unlabelled, grid25_uneven, ring8, moons, checkerboard"
    names = f"digits, fashion, {points}, emoji, emoji-animals-food, scenes"
    assert ", ".join(sources.names()) == names
    assert sources.describe() == f"{names}, a path to pictures, emoji:FONT.ttf, or stack:NAME"
    assert tuple(DENSITIES) == KINDS["densities"].names


@pytest.mark.parametrize("name", KINDS)
def test_a_module_keeps_what_it_declares(name: str) -> None:
    """The declaration equals the constant of the imported module, and the declared functions exist."""
    kind, module = KINDS[name], sources.module(name)
    assert kind == module.OPENS
    assert hasattr(module, "open_name") == bool(kind.names or kind.prefix)
    assert hasattr(module, "open_path") == bool(kind.files or kind.folders)


def test_the_registry_is_read_without_its_modules() -> None:
    """Describing the sources imports neither NumPy nor Arrow nor pydantic."""
    script = "import sys; from genflow.data import sources; sources.describe(); print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, encoding="utf-8")
    assert set(done.stdout.split()) & {"numpy", "pyarrow", "PIL", "pydantic", "genflow.data.sources.digits"} == set()
