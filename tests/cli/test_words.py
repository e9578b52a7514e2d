"""Flags of other tools, and recipe keys as flags: understood, or answered with the right key."""

import json
from typing import Any

import pytest
import typer
from support.commands import Command, in_this_process

from genflow.cli import app
from genflow.cli.words import translate
from genflow.tables import plan


@pytest.fixture
def genflow(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Any) -> Command:
    """Run a command in this process in an empty folder; return (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GENFLOW_STORE", raising=False)
    return in_this_process(monkeypatch, capsys)


def flags(command: str) -> set[str]:
    params = typer.main.get_command(app.app).commands[command].params  # type: ignore[attr-defined]
    return {flag for param in params for flag in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        ("train", "--lr 1e-3", "--set train.lr=1e-3"),
        ("train", "--learning_rate=1e-3", "--set train.lr=1e-3"),
        ("train", "--batch-size 64", "--set train.batch=64"),
        ("train", "--batch 64 --seed 3", "--set train.batch=64 --set train.seed=3"),
        ("train", "--num_epochs 2", "--epochs 2"),
        ("train", "--max_steps=9", "--steps 9"),
        ("train", "--guidance 2 --sampler heun", "--set sample.guidance=2 --set sample.sampler=heun"),
        ("train", "--flip --compile --workers 2", "--set data.flip=true --set train.compile=true --workers 2"),
        ("train", "--flip ddpm", "--set data.flip=true ddpm"),
        ("evaluate", "--classification latest", "--set evaluate.classification=true latest"),
        ("train", "--flip false ddpm", "--set data.flip=false ddpm"),
        ("train", "--weight-decay -1", "--set train.weight_decay=-1"),
        ("tune", "--budget 5", "--minutes 5"),
        ("tune", "--lr 0.1 --steps 9", "--set train.lr=0.1 --set tune.steps=9"),
        ("tables", "--budget 5", "--cpu-minutes 5"),
        ("evaluate", "--steps 4 --seed 1", "--set sample.steps=4 --set evaluate.seed=1"),
        ("compare", "--features random", "--set evaluate.features=random"),
        ("sample", "--num-samples 4 --num_inference_steps 8", "-n 4 --steps 8"),
        ("sample", "--labels cats", "--label cats"),
        ("prepare", "--max_bad 3 --image_size 32 --seed 1", "--max-bad 3 --size 32 --set data.seed=1"),
        ("train", "--nothing 3 -- --lr 3", "--nothing 3 -- --lr 3"),
    ],
)
def test_a_word_is_understood(command: str, typed: str, meant: str) -> None:
    """As the flag of the command, or as a key of its recipe; an unknown word stays."""
    assert translate(command, flags(command), typed.split()) == meant.split()


def test_a_flag_of_another_tool_works(genflow: Command) -> None:
    """The value arrives in the recipe, and is checked as that of any key."""
    code, out, _ = genflow("prepare", "digits", "--image_size", "16", "--seed", "5", "--dry-run", "--json")
    assert code == 0
    data = json.loads(out)["recipe"]["data"]
    assert (data["size"], data["seed"]) == (16, 5)
    for args, message in (
        (("train", "ddpm", "--lr", "-1"), "train.lr: must be greater than 0"),
        (("train", "ddpm", "--lr"), "option --lr needs a value: it sets train.lr"),
        (("train", "ddpm", "--nothing", "3"), "no such option: --nothing"),
        (("train", "ddpm", "--steps", "1o0"), "invalid value for '--steps': must be a whole number, not '1o0'"),
    ):
        code, _, err = genflow(*args)
        assert code == 2
        assert message in err.lower()


@pytest.mark.parametrize(
    ("pair", "answer"),
    [
        ("learning_rate=1", "did you mean train.lr?"), ("batch_size=1", "did you mean train.batch?"),
        ("train.learning_rate=1", "did you mean train.lr?"), ("lr=1", "did you mean train.lr?"),
        ("epochs=1", "training is counted in train.steps; --epochs N computes them"),
        ("train.num_epochs=1", "training is counted in train.steps; --epochs N computes them"),
        ("seed=1", "did you mean train.seed?"), ("n_trials=1", "did you mean tune.trials?"),
    ],
)  # fmt: skip
def test_a_key_of_another_tool_is_answered(genflow: Command, pair: str, answer: str) -> None:
    """--set with a word of another tool names the right key."""
    code, _, err = genflow("train", "ddpm", "--data", "digits", "--set", pair)
    assert code == 2
    assert answer in err


@pytest.mark.parametrize("args", [["-h"], ["train", "-h"], ["runs", "-h"], ["runs", "ls", "-h"], ["serve", "-h"]])
def test_h_is_help(genflow: Command, args: list[str]) -> None:
    """-h prints what --help prints."""
    assert genflow(*args) == genflow(*args[:-1], "--help")
    assert genflow(*args)[0] == 0


@pytest.mark.parametrize("command", ["train", "tune"])
def test_minutes_are_of_wall_clock(command: str) -> None:
    """--minutes is wall-clock time wherever it exists, and --cpu-minutes CPU time."""
    params = {p.name: p.help for p in typer.main.get_command(app.app).commands[command].params}  # type: ignore
    assert "all-clock" in params["minutes"]


def test_the_default_of_tables_is_said_once() -> None:
    """The help names the CPU minutes of the plan."""
    params = {p.name: p.help for p in typer.main.get_command(app.app).commands["tables"].params}  # type: ignore
    study = plan.load()
    assert params["cpu_minutes"].endswith(f"default: {study.budget:g}.")
    assert params["seeds"].endswith(f"default: {len(study.seeds)}.")
    assert "minutes" not in params
