"""Every command in the README and the guides parses; those of the README that need no cluster also run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from support import ROOT

from genflow.cli import app, families

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(document: Path) -> list[list[str]]:
    """The genflow command lines in a document's code blocks."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("genflow ")]


EVERY = [(document.name, args) for document in DOCUMENTS for args in commands(document)]


@pytest.mark.parametrize(("document", "args"), EVERY, ids=lambda v: " ".join(v) if isinstance(v, list) else v)
def test_a_documented_command_parses(document, args):
    """The command and all its flags exist."""
    group = typer.main.get_command(app.app)
    name = args.pop(0)
    command = group.commands[name]
    if hasattr(command, "commands"):
        command = command.commands[args.pop(0)]
    command.make_context(name, list(args), resilient_parsing=False)


def test_documented_make_targets_exist():
    """Every make target in the documents is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    targets = {t for path in DOCUMENTS for t in re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE)}

    assert {"quickstart", "test"} <= targets
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_linked_files_exist():
    """Every relative link in the documents points to an existing file."""
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.ray
def test_the_readmes_own_pictures_section_runs(tmp_path, monkeypatch):
    """The README's commands lead from a folder of images to a comparison, with small settings."""
    pictures = tmp_path / "my_pictures"
    rng = np.random.default_rng(0)
    for kind in ("bright", "dark"):
        (pictures / kind).mkdir(parents=True)
        for i in range(40):
            low, high = (128, 256) if kind == "bright" else (0, 128)
            Image.fromarray(rng.integers(low, high, (20, 24, 3), np.uint8)).save(pictures / kind / f"{i}.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GENFLOW_STORE", raising=False)
    small = {
        "prepare": ["--set", "data.val=0.3"],
        "train": ["--steps", "4", "--set", "train.batch=8", "--set", "net.width=8"],
        "tune": ["--trials", "2", "--set", "tune.steps=2", "--set", "train.batch=8", "--set", "net.width=8",
                 "--set", "tune.samples=16", "--set", "tune.confirm=0"],
        "tables": ["--dry-run"],  # the full command takes hours
        "compare": ["--samples", "16", "--set", "evaluate.sweep_samples=16", "--set", "evaluate.steps=[1,2]",
                    "--set", "evaluate.likelihood=4"],
    }  # fmt: skip
    ran = []
    for args in commands(ROOT / "README.md"):
        if args[0] in ("ui", "jobs", "serve", "endpoints", "recommend") or "--cluster" in args:
            continue
        args = [arg.replace("~", str(tmp_path)) if arg.startswith("~") else arg for arg in args]
        done = subprocess.run(
            [sys.executable, "-c", "from genflow.cli.app import main; main()", *args, *small.get(args[0], [])],
            cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, f"genflow {' '.join(args)}: {done.stderr}"
        ran.append(args[0])

    assert {"prepare", "data", "train", "compare", "sample"} <= set(ran)
    assert (tmp_path / "grid.png").exists()
    (report,) = (tmp_path / ".genflow/reports").glob("*/report.html")
    assert json.loads((report.parent / "manifest.json").read_text())["files"]["report.html"]["size"] < 10_000_000


def test_the_table_of_families_is_up_to_date():
    """The README's table equals the output of `genflow families`; `make docs` updates it."""
    text = (ROOT / "README.md").read_text()
    assert families.update_table(text) == text


def test_families_as_json(capsys):
    """The JSON document contains the properties of each family."""
    families.families(json=True)
    found = {family["kind"]: family for family in json.loads(capsys.readouterr().out)["families"]}
    assert found["consistency"]["teacher"] == "required"
    assert found["gan"]["likelihood"] is None
    assert found["normalizing_flow"]["likelihood"] == "exact-dequantized"
    assert found["flow_matching"]["guidance"]
    assert found["flow_matching"]["codes"]
    assert not found["gan"]["codes"]
