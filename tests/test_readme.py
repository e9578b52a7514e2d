"""Every command in the README and the guides parses; those of the README that need no cluster also run."""

import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from support import ROOT

from genflow.cli import app, families
from genflow.evaluation.features import classifier
from genflow.launch import local

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(document: Path) -> list[list[str]]:
    """The genflow command lines in a document's code blocks."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
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
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    targets = {target for text in texts for target in re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.MULTILINE)}

    assert {"quickstart", "test"} <= targets
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_linked_files_exist():
    """Every relative link in the documents points to an existing file."""
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def pictures(folder: Path) -> None:
    """Two classes of noise, bright and dark."""
    rng = np.random.default_rng(0)
    for kind, low in (("bright", 128), ("dark", 0)):
        (folder / kind).mkdir(parents=True)
        for i in range(40):
            Image.fromarray(rng.integers(low, low + 128, (20, 24, 3), np.uint8)).save(folder / kind / f"{i}.png")


def run_in_this_process(stage, document, store, on_event, *, verbose=False):
    """A job without a process of its own: each would import torch, and start a Ray. `test_wheel` starts one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENFLOW_STORE", store.url)
        job = importlib.import_module(f"jobs.{stage}")
        return job.main(document, lambda event, **fields: on_event({"event": event, **fields}))


@pytest.mark.ray
def test_the_readmes_own_pictures_section_runs(tmp_path, monkeypatch, capsys, ray_local, mlflow_database):
    """From a folder of pictures to a comparison, by the README's own lines, made small."""
    pictures(tmp_path / "my_pictures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GENFLOW_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".genflow").mkdir()
    shutil.copy(mlflow_database, tmp_path / ".genflow")
    monkeypatch.setattr(local, "run_local", run_in_this_process)
    monkeypatch.setattr(classifier, "MIN_STEPS", 5)
    monkeypatch.setattr(classifier, "MAX_STEPS", 5)
    small = {
        "prepare": ["--set", "data.val=0.3"],
        "train": ["--latents", "none", "--steps", "4", "--set", "train.batch=8", "--set", "net.width=8"],
        "tune": ["--latents", "none", "--trials", "2", "--set", "tune.steps=2", "--set", "train.batch=8",
                 "--set", "net.width=8", "--set", "tune.samples=16", "--set", "tune.confirm=0"],
        "tables": ["--dry-run"],  # the full command takes hours
        "run": ["--dry-run"],  # test_pipeline runs it
        "compare": ["--samples", "16", "--set", "evaluate.sweep_samples=16", "--set", "evaluate.steps=[1,2]",
                    "--set", "evaluate.likelihood=4", "--set", "evaluate.bootstrap=3"],
    }  # fmt: skip
    ran = []
    for args in commands(ROOT / "README.md"):
        if args[0] in ("ui", "jobs", "serve", "endpoints", "recommend", "quickstart"):
            continue
        if {"--cluster", "--latents", "--prompt"} & {*args}:
            continue
        args = [arg.replace("~", str(tmp_path)) if arg.startswith("~") else arg for arg in args]
        monkeypatch.setattr(sys, "argv", ["genflow", *args, *small.get(args[0], [])])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert ended.value.code == 0, f"genflow {' '.join(args)}: {capsys.readouterr().err}"
        ran.append(args[0])

    assert {"prepare", "data", "train", "compare", "sample", "tune", "tables"} <= set(ran)
    assert (tmp_path / "grid.png").exists()
    (report,) = (tmp_path / ".genflow/reports").glob("*/report.html")
    assert json.loads((report.parent / "manifest.json").read_bytes())["files"]["report.html"]["size"] < 10_000_000


def test_the_table_of_families_is_up_to_date():
    """The README's table equals the output of `genflow families`; `make docs` updates it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
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
