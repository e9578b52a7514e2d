"""Text is UTF-8 whatever the locale is: in the code, and in commands that a real locale runs."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT

PROGRAMS = ("run", "Popen", "check_output", "check_call")
FILES = {"open": 1, "fdopen": 1, "NamedTemporaryFile": 0, "TemporaryFile": 0}  # where the mode is among the arguments
BINARY = {"NamedTemporaryFile", "TemporaryFile"}  # without a mode


def lacks_encoding(call: ast.Call) -> bool:
    """Whether a call opens text, and leaves the encoding to the locale. Ruff's rule knows variables of few types."""
    own = isinstance(call.func, ast.Name)
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given or None in given:
        return False
    if name in PROGRAMS:
        return "text" in given or "universal_newlines" in given
    if name in ("read_text", "write_text"):
        return len(call.args) == (name == "write_text")
    if name in FILES and (own or name != "open"):
        at = FILES[name]
        mode = call.args[at] if len(call.args) > at else given.get("mode")
        return name not in BINARY if mode is None else isinstance(mode, ast.Constant) and "b" not in str(mode.value)
    return False


@pytest.mark.parametrize("folder", ["genflow", "jobs", "tests", "benchmarks"])
def test_text_has_an_encoding(folder: str) -> None:
    """Every call that opens text names its encoding."""
    wrong = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        calls = (node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Call))
        wrong += [f"{file.relative_to(ROOT)}:{call.lineno}" for call in calls if lacks_encoding(call)]
    assert wrong == []


@pytest.fixture(params=["C", "ISO-8859-1"])
def locale(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The variables of a locale whose encoding is not UTF-8; Python does not replace it."""
    variables = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if request.param == "C":
        return {**variables, "LC_ALL": "C"}
    if not (program := shutil.which("localedef")):
        return {**variables, "LC_ALL": "C", "PYTHONIOENCODING": request.param}
    made = tmp_path / "locales" / f"en_US.{request.param}"
    made.parent.mkdir()
    done = subprocess.run([program, "-i", "en_US", "-f", request.param, made], capture_output=True, encoding="utf-8")
    if not made.is_dir():
        pytest.skip(f"localedef makes no locale: {done.stderr.strip()[:200]}")
    return {**variables, "LOCPATH": str(made.parent), "LC_ALL": made.name}


PROGRAM = """
import sys
from genflow.data.prepare import in_process
import jobs.prepare
jobs.prepare.ray_workers = in_process
from genflow.launch import local
from jobs.runtime.entrypoint import run_and_report

def run_local(stage, document, store, on_event, **options):
    found = []
    def emit(event, **fields):
        found.append({"event": event, **fields})
    assert run_and_report(jobs.prepare.main, document, emit) == 0, found[-1]
    return found[-1]["document"]

local.run_local = run_local  # the job runs in this process, because a child process takes seconds
from genflow.cli import app
for command in sys.argv[1].split(";"):
    sys.argv = ["genflow", *command.split()]
    try:
        app.main()
    except SystemExit as end:
        if end.code:
            raise
"""


def test_pictures_and_captions_that_are_not_ascii(locale: dict[str, str], tmp_path: Path) -> None:
    """Names and captions outside ASCII are kept, and commands print them as the locale permits."""
    folder = tmp_path / "Straße"
    folder.mkdir()
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"größe{index}.png")
        (folder / f"größe{index}.txt").write_text(f"Чай и 数 {index}", encoding="utf-8")
    store = tmp_path / "store"
    commands = "prepare Straße --size 8 --name tea;data ls;data show tea;runs ls"
    environment = {**os.environ, **locale, "PYTHONPATH": str(ROOT), "GENFLOW_STORE": str(store)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, commands], env=environment, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr
    assert b"captions" in done.stdout
    import pyarrow as pa

    captions: set[str] = set()
    for file in store.glob("datasets/tea-*/*/*.arrow"):
        table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
        captions |= {text for row in table["captions"].to_pylist() for text in row}
    assert captions == {f"Чай и 数 {index}" for index in range(12)}
