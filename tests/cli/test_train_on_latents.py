"""`genflow train` learns large pictures as latents, and says so."""

import json
from pathlib import Path

import pytest
from support.commands import Command, in_this_process
from support.latents import SMALL, dataset, encoded, pictures, task
from support.trained_run import trained_run

from genflow.commands import train
from genflow.pipeline import latents
from genflow.recipe.compose import compose
from genflow.storage.store import Store


@pytest.fixture
def genflow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Store) -> Command:
    """Runs a command on the test's store: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    return in_this_process(monkeypatch, capsys)


def plan(genflow: Command, *arguments: str) -> list[str]:
    code, out, _ = genflow("train", *arguments, "--dry-run", "--json")
    assert code == 0
    document = json.loads(out)
    return [stage["job"] for stage in document["stages"]] if "pipeline" in document else ["train"]


@pytest.mark.parametrize(
    ("size", "family", "more", "jobs"),
    [
        (48, "ddpm", (), ["train", "encode", "train"]),
        (48, "ddpm", ("--latents", "none"), ["train"]),
        (48, "autoencoder", (), ["train"]),
        (32, "ddpm", (), ["train", "encode", "train"]),
        (30, "ddpm", (), ["train"]),
        (16, "ddpm", ("--latents", "auto"), ["train", "encode", "train"]),
    ],
)
def test_large_pictures_are_learned_as_latents(
    genflow: Command, store: Store, tmp_path: Path, size: int, family: str, more: tuple[str, ...], jobs: list[str]
) -> None:
    """Colours from 32 pixels on by default, smaller ones on request; an autoencoder always learns pictures."""
    data = dataset(store, pictures(tmp_path / "colours", 20, (size, size)), size=size)
    assert plan(genflow, family, "--data", data.artifact.name, *more) == jobs
    _, _, err = genflow("train", family, "--data", data.artifact.name, *more, "--dry-run")
    assert ("are learned as latents" in err) == (len(jobs) == 3 and not more)


@pytest.mark.parametrize(("size", "jobs"), [(32, ["train"]), (48, ["train", "encode", "train"])])
def test_grey_pictures_are_learned_as_latents_from_48_pixels_on(
    genflow: Command, store: Store, tmp_path: Path, size: int, jobs: list[str]
) -> None:
    data = dataset(store, pictures(tmp_path / "colours", 20, (size, size)), size=size, channels=1)
    assert plan(genflow, "ddpm", "--data", data.artifact.name) == jobs


def test_the_preset_on_latents_holds_however_they_are_chosen(store: Store, tmp_path: Path) -> None:
    """By default, by name, and by the run that a training starts from."""
    data = dataset(store, pictures(tmp_path / "colours", 20, (32, 32)), size=32)
    made = encoded(store, task(store, trained_run(store, data, "autoencoder", steps=1, **SMALL)))
    begun = trained_run(store, data, "ddpm", steps=1, latents=made)
    for more in ({}, {"data.latents": made.id}, {"init": begun.id}):
        chosen = train.recipe(store, "ddpm", [], [], [], **{"data.name": data.artifact.name, **more})
        assert (chosen.train.optimizer, chosen.train.lr) == ("adamw", 0.005)
        assert (chosen.family["predict"], chosen.family["weight"]) == ("velocity", "uniform")
        assert chosen.data.latents == ("auto" if not more else made.id)
    pixels = train.recipe(store, "ddpm", [], [], [], **{"data.name": data.artifact.name, "data.latents": "none"})
    assert (pixels.train.optimizer, pixels.family["predict"]) == ("muon", "v")


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        (("--minutes", "3"), {"minutes": 1.0}),
        (("--cpu-minutes", "6"), {"cpu_minutes": 2.0}),
        (("--minutes", "30"), {}),
        (("--steps", "9"), {"steps": 9}),
        (("--steps", "5000"), {}),
    ],
)
def test_the_autoencoder_of_a_short_training_is_short(
    genflow: Command, store: Store, tmp_path: Path, budget: tuple[str, str], limit: dict[str, float]
) -> None:
    """It has a third of the minutes and as many steps, unless its preset has less; its run is another one then."""
    data = dataset(store, pictures(tmp_path / "colours", 20)).artifact.name
    code, out, _ = genflow("train", "ddpm", "--data", data, "--latents", "auto", *budget, "--dry-run", "--json")
    assert code == 0
    document = latents.pipeline(compose("ddpm", {"data": {"name": data}, "train": {**_given(budget)}}))
    assert document["stages"]["autoencoder"].get("train", {}) == limit
    stages = {stage["stage"]: stage["artifact"] for stage in json.loads(out)["stages"]}
    _, out, _ = genflow("train", "ddpm", "--data", data, "--latents", "auto", "--dry-run", "--json")
    usual = {stage["stage"]: stage["artifact"] for stage in json.loads(out)["stages"]}
    assert (stages["autoencoder"] == usual["autoencoder"]) == (not limit)


def _given(budget: tuple[str, str]) -> dict[str, float]:
    return {budget[0].strip("-").replace("-", "_"): int(budget[1])}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("family.forget=2", "family.forget: must be less than 1, not 2"),
        ("net.kind=unett", "unknown net 'unett'"),
        ("sample.step=3", "unknown key step"),
    ],
)
def test_a_wrong_value_is_refused_before_the_autoencoder_is_trained(
    genflow: Command, store: Store, tmp_path: Path, wrong: str, said: str
) -> None:
    """The last stage's recipe is checked first: training the autoencoder takes minutes."""
    data = dataset(store, pictures(tmp_path / "colours", 20))
    code, _, err = genflow("train", "ddpm", "--data", data.artifact.name, "--latents", "auto", "--set", wrong)
    assert code == 2
    assert said in err
    assert not store.names("runs")


def test_latents_that_exist_are_used_at_once(genflow: Command, store: Store, tmp_path: Path) -> None:
    """`--latents NAME` needs no --data; unknown latents, and latents of other data, are one line."""
    data = dataset(store, pictures(tmp_path / "colours", 20))
    latents = encoded(store, task(store, trained_run(store, data, "autoencoder", steps=1, **SMALL)))
    assert plan(genflow, "flow_matching", "--latents", latents.id) == ["train"]
    code, _, err = genflow("train", "flow_matching", "--latents", "unknown", "--dry-run")
    assert (code, "unknown" in err, len(err.splitlines())) == (2, True, 2)
    dataset(store, "moons", samples=100)
    code, _, err = genflow("train", "ddpm", "--latents", latents.id, "--data", "moons", "--dry-run")
    assert code == 2
    assert f"{latents.id} are latents of {data.artifact.id}" in err


def test_one_command_makes_latents_of_a_folder(
    genflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`genflow run latent` takes a folder relative to the current one, and reaches the report."""
    pictures(tmp_path / "colours", 20, (64, 64))
    monkeypatch.chdir(tmp_path)
    code, out, _ = genflow("run", "latent", "--set", "data.source=colours", "--dry-run", "--json")
    stages = {stage["stage"]: stage for stage in json.loads(out)["stages"]}
    assert code == 0
    assert stages["data"]["artifact"].startswith("colours-")
    assert stages["flow"]["needs"] == ["data", "latents"]
    assert stages["report"]["needs"] == ["flow", "autoencoder"]


@pytest.mark.parametrize(("side", "more"), [(64, " --latents auto"), (32, " --latents auto"), (24, "")])
def test_the_next_command_proposes_latents(
    genflow: Command, store: Store, tmp_path: Path, side: int, more: str
) -> None:
    """After large pictures were prepared or shown; small ones are learned as pixels."""
    dataset(store, pictures(tmp_path / "colours", 20, (side, side)), size=side)
    command = f"genflow train flow_matching --data colours{more}\n"
    shown = ("data", "show", "colours", "--out", str(tmp_path / "x.png"))
    again = ("prepare", str(tmp_path / "colours"), "--size", str(side), "--val", "0")
    for arguments in (shown, again):
        code, out, err = genflow(*arguments)
        assert code == 0, err
        assert command in out
