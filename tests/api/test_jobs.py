"""The commands as functions send the documents that the commands send, and understand the same words."""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support.trained_run import trained_run

import genflow
from genflow.cli import app
from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.errors import UsageError
from genflow.launch import local
from genflow.recipe.schema import Data as Section
from genflow.storage.store import Store
from genflow.system.documents import Json

Sent = list[tuple[str, Json]]


class Recorded(Exception):  # noqa: N818  it ends a command
    """Raised in the place of running a job."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("jobs") / "store")
    for source in ("digits", "emoji"):
        section = Section(source="moons", name=source, samples=500) if source == "emoji" else Section(source=source)
        artifact, _ = prepare(store, section, in_process, lambda event, **fields: None)
    points = Dataset.open(artifact)
    measured = trained_run(store, points, "flow_matching", "a", steps=2)
    with store.stage("evaluations", "a-1") as staged:
        document = {"run": measured.id, "evaluate": {"samples": 77, "of_another_version": 1}, "sample": {"steps": 3}}
        (staged.path / "metrics.json").write_text(json.dumps(document), encoding="utf-8")
        staged.commit(parents=[measured.id])
    trained_run(store, points, "flow_matching", "b", steps=3)
    return store


@pytest.fixture
def sent(store: Store, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What jobs would have been sent."""
    monkeypatch.setenv("GENFLOW_STORE", store.url)
    found: Sent = []

    def run_local(stage: str, document: Json, *_: Any, **__: Any) -> Json:
        found.append((stage, document))
        raise Recorded

    monkeypatch.setattr(local, "run_local", run_local)
    return found


def by_command(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["genflow", *args])
    with pytest.raises(SystemExit):
        app.main()


SAME: list[tuple[list[str], Callable[[], Any]]] = [
    (["prepare", "digits", "--size", "16", "--val", "0.2"], lambda: genflow.prepare("digits", size=16, val=0.2)),
    (["prepare", "moons", "--set", "data.samples=300"], lambda: genflow.prepare("moons", samples=300)),
    (["train", "ddpm", "--data", "digits"], lambda: genflow.train("ddpm", data="digits")),
    (
        ["train", "ddpm", "--data", "digits", "--minutes", "2", "--set", "train.lr=0.1", "--set", "net.width=8"],
        lambda: genflow.train("ddpm", data=genflow.data("digits"), minutes=2, lr=0.1, set={"net.width": 8}),
    ),
    (
        ["train", "vae", "--data", "digits", "--fresh", "--name", "x"],
        lambda: genflow.train("vae", data="digits", resume=False, name="x"),
    ),
    (["train", "vae", "--data", "digits", "--epochs", "2"], lambda: genflow.train("vae", data="digits", epochs=2)),
    (["train", "vae", "--data", "digits", "--cpu-minutes", "1"],
     lambda: genflow.train("vae", data="digits", cpu_minutes=1)),
    (
        ["tune", "ddpm", "--data", "emoji", "--trials", "3", "-p", "train.lr=log:1e-3:1e-1", "--metric", "fd"],
        lambda: genflow.tune("ddpm", data="emoji", trials=3, param={"train.lr": "log:1e-3:1e-1"}, metric="fd"),
    ),
    (["evaluate", "a", "--samples", "64"], lambda: genflow.evaluate("a", samples=64)),
    (["evaluate", "a", "--samples", "64"], lambda: genflow.load("a").evaluate(64)),
    (
        ["compare", "a", "b", "--set", "evaluate.likelihood=0"],
        lambda: genflow.compare("a", genflow.load("b"), set={"evaluate.likelihood": 0}),
    ),
    (["report", "a"], lambda: genflow.load("a").report()),
    (["report", "a", "--samples", "99", "--set", "sample.steps=4"],
     lambda: genflow.load("a").report(samples=99, set={"sample.steps": 4})),
]  # fmt: skip


@pytest.mark.parametrize(("args", "call"), SAME, ids=[" ".join(args) for args, _ in SAME])
def test_a_function_sends_the_job_of_its_command(
    sent: Sent, monkeypatch: pytest.MonkeyPatch, args: list[str], call: Callable[[], Any]
) -> None:
    """The same stage with the same recipe and inputs."""
    by_command(monkeypatch, *args)
    with pytest.raises(Recorded):
        call()
    command, function = sent
    assert function == command


def test_a_report_keeps_the_settings_of_the_last_evaluation(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a measured run is not measured again; flags and keys override them."""
    for more, samples, steps in ((), 77, 3), (("--samples", "99"), 99, 3), (("--steps", "5"), 77, 5):
        by_command(monkeypatch, "report", "a", *more)
        recipe = sent[-1][1]["recipe"]
        assert (sent[-1][0], recipe["evaluate"]["samples"], recipe["sample"]["steps"]) == ("compare", samples, steps)


def test_an_error_is_raised_before_a_job_is_sent(sent: Sent) -> None:
    """An unknown word, key, family or dataset is a usage error that names the nearest known one."""
    for call, message in (
        (lambda: genflow.train("ddpmm", data="digits"), "did you mean ddpm?"),
        (lambda: genflow.train("ddpm", data="nowhere"), "no dataset 'nowhere'"),
        (lambda: genflow.train("ddpm", data="digits", weight_dekay=1), "did you mean weight_decay?"),
        (lambda: genflow.train("ddpm", data="digits", set={"train.lrr": 1}), "did you mean train.lr?"),
        (lambda: genflow.train("ddpm", data="digits", epochs=0), "--epochs must be above 0"),
        (lambda: genflow.prepare("digits", channels=4), "--channels must be auto, 1 or 3"),
    ):
        with pytest.raises(UsageError) as refused:
            call()
        assert message in f"{refused.value.message} {refused.value.hint}"
    assert sent == []
