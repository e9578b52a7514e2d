"""Execute notebooks in this process, without Jupyter, and keep their outputs.

    python docs/notebooks/execute.py docs/notebooks/*.ipynb      # in an empty folder; `make notebooks` does it

Each cell is executed in the namespace of the cells before it. What it prints, and the value of its last line, become
its outputs; progress on standard error does not. A notebook is written back only if all of its cells have run.
"""

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

REPRESENTATIONS = {"text/plain": "__repr__", "text/html": "_repr_html_", "image/png": "_repr_png_"}


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of its cells. Raises what a cell raises."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            cell |= {"execution_count": number, "outputs": run("".join(cell["source"]), number, namespace)}
    return notebook


def run(source: str, number: int, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """Execute one cell and return its outputs."""
    name = f"<cell {number}>"
    body = ast.parse(source, name).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), name, "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        data = represent(value)
        outputs.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data})
    return outputs


def represent(value: Any) -> dict[str, Any]:
    """What Jupyter would show of a value, by MIME type."""
    found: dict[str, Any] = {}
    for kind, method in REPRESENTATIONS.items():
        if (made := getattr(value, method, lambda: None)()) is not None:
            text = base64.b64encode(made).decode() if isinstance(made, bytes) else made
            found[kind] = text if kind == "image/png" else text.splitlines(keepends=True)
    return found


def main(paths: list[str]) -> None:
    """Execute notebooks one after another, and write them back."""
    for path in map(Path, paths):
        print(f"executing {path.name}", file=sys.stderr, flush=True)
        notebook = execute(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
