"""The command line: a wrong command ends with one line and the right exit code; --json prints one document."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from support.commands import in_this_process

from genflow.cli import app
from genflow.cli.commands import COMMANDS


@pytest.fixture
def genflow(monkeypatch, capsys, tmp_path):
    """Run a command in this process in an empty folder; return (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GENFLOW_STORE", raising=False)
    return in_this_process(monkeypatch, capsys)


WRONG_COMMANDS = [
    (["foo"], 2, "foo"),
    (["train"], 2, "family"),
    (["train", "ddpmm", "--data", "digits"], 2, "did you mean ddpm?"),
    (["train", "ddpm"], 2, "no dataset given"),
    (["train", "ddpm", "--data", "nowhere"], 2, "no dataset 'nowhere'"),
    (["train", "ddpm", "--data", "digits", "--set", "train.lrr=1"], 2, "did you mean train.lr?"),
    (["train", "ddpm", "--data", "digits", "--set", "lr=1"], 2, "did you mean train.lr?"),
    (["train", "ddpm", "--data", "digits", "--set", "trian.lr=1"], 2, "did you mean train?"),
    (["train", "ddpm", "--data", "digits", "--set", "train.lr"], 2, "key=value"),
    (["train", "ddpm", "--data", "digits", "--set", "train=3"], 2, "section"),
    (["train", "ddpm", "--data", "digits", "--set", "train.lr=fast"], 2, "train.lr"),
    (["train", "ddpm", "--data", "digits", "--set", "train.lr=-1"], 2, "greater than 0"),
    (["train", "ddpm", "--data", "digits", "--set", "train.lr=NaN"], 2, "train.lr"),
    (["train", "ddpm", "--data", "digits", "--set", "family.kind=vae"], 2, "family.kind"),
    (["train", "ddpm", "--data", "digits", "--steps", "0"], 2, "train.steps"),
    (["train", "ddpm", "--data", "digits", "--steps", "many"], 2, "--steps"),
    (["train", "ddpm", "--data", "digits", "--minutes", "-3"], 2, "train.minutes"),
    (["train", "ddpm", "--data", "digits", "-c", "nowhere.yaml"], 2, "nowhere.yaml"),
    (["train", "ddpm", "--data", "digits", "--name", "a/b"], 2, "name"),
    (["prepare", "/no/such/folder"], 2, "/no/such/folder"),
    (["prepare", "digitss"], 2, "digits"),
    (["prepare", "digits", "--size", "1"], 2, "data.size"),
    (["prepare", "digits", "--channels", "4"], 2, "--channels"),
    (["prepare", "digits", "--val", "1.5"], 2, "data.val"),
    (["prepare", "digits", "--max-bad", "-1"], 2, "data.max_bad"),
    (["prepare", "digits", "--bits", "8"], 2, "data.bits"),
    (["prepare", "digits", "--crop", "left"], 2, "data.crop"),
    (["prepare", "digits", "--encoding", "jpeg"], 2, "--encoding webp, which is lossless"),
    (["sample", "nothing"], 2, "no run 'nothing'"),
    (["sample", "latest"], 2, "has none"),
    (["sample", "latest", "-o", "x.jpg"], 2, ".jpg"),
    (["sample", "latest", "-n", "0"], 2, "must be at least 1"),
    (["evaluate"], 2, "RUN"),
    (["tables"], 2, "--data"),
    (["tables", "--data", "nowhere"], 2, "no dataset 'nowhere'"),
    (["tables", "--data", "digits", "--cpu-minutes", "-1"], 2, "--cpu-minutes"),
    (["tables", "--data", "digits", "--seeds", "0"], 2, "--seeds"),
    (["tables", "--data", "digits", "--set", "evaluate.sample=3", "--dry-run"], 2, "did you mean evaluate.samples?"),
    (["tables", "--data", "digits", "-o", "tables.pdf"], 2, "written as .html, .png, .md, .json"),
    (["tables", "--data", "digits", "-o", "/no/such/folder/tables.md"], 2, "mkdir -p /no/such/folder"),
    (["compare", "nothing", "-o", "/no/such/folder/report.html"], 2, "mkdir -p /no/such/folder"),
    (["tune", "vae", "--data", "digits", "-o", "/no/such/folder/best.yaml"], 2, "mkdir -p /no/such/folder"),
    (["run", "tables"], 2, "genflow tables --data NAME"),
    (["recommend"], 2, "no run was measured yet"),
    (["recommend", "--max-latency", "soon"], 2, "--max-latency must be a time"),
    (["evaluate", "nothing"], 2, "no run 'nothing'"),
    (["compare", "best:fd"], 2, "best:fd"),
    (["run", "quickstartt"], 2, "did you mean quickstart?"),
    (["run", "vae"], 2, "not a pipeline"),
    (["data", "show", "nothing"], 2, "no dataset 'nothing'"),
    (["data", "rm", "nothing"], 2, "no dataset 'nothing'"),
    (["runs", "rm", "nothing", "--yes"], 2, "no run 'nothing'"),
    (["export", "nothing"], 2, "no run 'nothing'"),
    (["export", "latest", "--to", "pickle"], 2, "pickle"),
]


@pytest.mark.parametrize(
    ("args", "code", "text"), WRONG_COMMANDS, ids=lambda v: " ".join(v) if isinstance(v, list) else None
)
def test_wrong_command_is_one_line(genflow, args, code, text):
    """A wrong command prints the error in one line, at most one line with the fix, and exits with the right code."""
    got, out, err = genflow(*args)

    lines = err.strip().splitlines()
    assert got == code
    assert out == ""
    assert lines[0].startswith("error: ")
    assert text in err
    assert len(lines) <= 2
    assert "Traceback" not in err
    assert not Path(".genflow").exists()


def test_wrong_command_shows_its_traceback_with_v(genflow):
    """-v adds the traceback, wherever it is in the command."""
    code, _, err = genflow("train", "ddpmm", "-v")

    assert code == 2
    assert "Traceback" in err


@pytest.mark.parametrize("args", [["runs", "ls"], ["data", "ls"]])
def test_an_empty_store_is_not_an_error(genflow, args):
    """Listing an empty store succeeds and suggests the next command."""
    code, out, _ = genflow(*args)

    assert code == 0
    assert "Next:" in out


@pytest.mark.parametrize(
    "args", [["runs", "ls"], ["data", "ls"], ["run", "quickstart", "--dry-run"], ["prepare", "digits", "--dry-run"]]
)
def test_json_is_one_document(genflow, args):
    """--json prints exactly one document with a schema."""
    code, out, _ = genflow(*args, "--json")

    assert code == 0
    assert json.loads(out)["schema"].startswith("genflow.")


def test_dry_run_writes_nothing(genflow):
    """--dry-run prints the plan and writes nothing."""
    code, out, _ = genflow("quickstart", "--dry-run")

    assert code == 0
    assert all(word in out for word in ("prepare", "train", "compare", "to do"))
    assert not Path(".genflow").exists()


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["runs", "--help"], ["--version"]])
def test_help_is_success(genflow, args):
    """--help and --version exit with code 0."""
    code, out, _ = genflow(*args)

    assert code == 0
    assert "genflow" in out


@pytest.mark.parametrize("args", [[], ["cluster"]])
def test_no_arguments_print_the_help_once(genflow, args):
    """`genflow` alone, and a group that does not list, print their help."""
    code, out, _ = genflow(*args)

    assert code == 2
    assert out.count("Usage: ") == 1


def test_help_imports_nothing_heavy():
    """`genflow --help` imports none of the heavy packages."""
    heavy = ("torch", "ray", "mlflow", "numpy", "pydantic", "yaml", "pyarrow", "genflow.recipe", "genflow.storage")
    program = f"""
import sys
sys.argv[1:] = ["--help"]
from genflow.cli import app
try:
    app.main()
except SystemExit:
    print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, encoding="utf-8")

    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_every_command_has_at_most_13_flags():
    """A command has at most 13 visible flags besides --set and --help."""

    def commands(group):
        for command in group.commands.values():
            yield from commands(command) if hasattr(command, "commands") else [command]

    for command in commands(typer.main.get_command(app.app)):
        flags = [p for p in command.params if p.param_type_name == "option" and p.name not in ("help", "sets")]
        flags = [p for p in flags if not p.hidden]
        assert len(flags) <= 13, command.name


def test_completion_knows_families(genflow, monkeypatch):
    """Shell completion completes commands and families."""
    for words, completion in (("genflow tr", "train"), ("genflow train flo", "flow_matching")):
        monkeypatch.setenv("_GENFLOW_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        _, out, _ = genflow()

        assert completion in out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_lists_a_command_as_it_describes_itself(name):
    """`genflow --help` has the first paragraph of the command's own help."""
    command = typer.main.get_command(app.app).commands[name]

    assert command.name == name
    assert " ".join(command.help.split("\n\n")[0].split()) == COMMANDS[name][1]


def test_a_misspelt_command_gets_a_suggestion(genflow):
    """An unknown command exits with 2 and names those that are similar."""
    code, _, err = genflow("trian")

    assert code == 2
    assert "'train'" in err
