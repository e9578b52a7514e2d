"""The notebooks of docs/notebooks run, and their committed outputs are of the committed cells."""

import ast
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

FOLDER = ROOT / "docs/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 300_000  # bytes of a notebook with its outputs


def cells(path: Path) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_as_a_whole(path: Path) -> None:
    """Every cell parses and was executed in order; a cell that ends with an expression has an output; no error."""
    assert path.stat().st_size <= LARGEST
    for number, cell in enumerate(cells(path), 1):
        body = ast.parse("".join(cell["source"])).body
        assert cell["execution_count"] == number
        assert bool(cell["outputs"]) >= isinstance(body[-1], ast.Expr)
        assert all(output["output_type"] != "error" for output in cell["outputs"])


def test_there_are_notebooks() -> None:
    """The documentation links to each of them."""
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) >= 3
    assert all(f"notebooks/{path.name}" in page for path in NOTEBOOKS)


def test_cells_are_executed_like_those_of_jupyter() -> None:
    """Later cells see the names of earlier ones; a value is shown by each of its representations."""
    run = runpy.run_path(str(FOLDER / "execute.py"))["run"]
    namespace: dict[str, Any] = {}
    source = "class A:\n    def _repr_png_(self):\n        return b'1'\n\nprint('x')\nA()"
    stream, result = run(source, 1, namespace)
    assert stream["text"] == ["x\n"]
    assert result["data"]["image/png"] == "MQ=="
    assert run("A().b = 1", 2, namespace) == []


@pytest.mark.slow  # trains four small models: two minutes of CPU time
def test_the_notebooks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, in their order; every output has the form of the committed one."""
    monkeypatch.chdir(tmp_path)
    for name in ("GENFLOW_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    main = runpy.run_path(str(FOLDER / "execute.py"))["main"]
    for path in NOTEBOOKS:
        shutil.copy(path, tmp_path)
        main([str(tmp_path / path.name)])
        for made, kept in zip(cells(tmp_path / path.name), cells(path), strict=True):
            kinds = [[sorted(output.get("data", {})) for output in cell["outputs"]] for cell in (made, kept)]
            assert kinds[0] == kinds[1]
