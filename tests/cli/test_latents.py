"""Latents on the command line: how they are named, and what errors say. The store has manifests alone."""

import json

import pytest

from genflow import runs
from genflow.cli import data, removal, tables, train, tune
from genflow.cli import runs as runs_command
from genflow.commands import references
from genflow.errors import UsageError
from genflow.recipe.compose import assignments, compose
from genflow.recipe.files import dump
from genflow.storage.store import Artifact, Store


def made(store: Store, kind: str, id: str, **meta: object) -> Artifact:
    (store.folder(kind, id)).mkdir(parents=True)
    meta = {"facts": {"shape": [3, 8, 8]}, **meta}
    return store.finalize(kind, id, name=id.rpartition("-")[0], parents=[], meta=meta)


@pytest.fixture
def colours(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Datasets `colours` and `others`, with two latents of the name `colours` for the first; `bare` has none."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    for name in ("colours-1a", "others-1b", "bare-1c"):
        made(store, "datasets", name)
    for id, dataset in (("colours-2a", "colours-1a"), ("colours-2b", "colours-1a"), ("small-2c", "others-1b")):
        made(store, "latents", id, dataset=dataset)
    return store


def test_a_name_of_several_latents(colours: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """It means the newest, and a line says so; with a dataset, the newest of that dataset."""
    assert references.find_latents(colours, "colours").id == "colours-2b"
    assert "the name also belongs to colours-2a" in capsys.readouterr().err
    made(colours, "latents", "colours-2d", dataset="others-1b")
    own = references.find_latents(colours, "colours", colours.find("datasets", "colours"))
    assert own.id == "colours-2b"
    assert "means colours-2b, the newest of colours-1a; the name also" in capsys.readouterr().err


def test_a_datasets_name_finds_its_latents(colours: Store) -> None:
    """Latents of another name are found by the name of their dataset; a dataset without latents names the cure."""
    assert references.find_latents(colours, "others").id == "small-2c"
    with pytest.raises(UsageError, match="the dataset bare-1c has no latents") as error:
        references.find_latents(colours, "bare")
    assert error.value.hint == "--data bare --latents auto, or: genflow encode bare"
    with pytest.raises(UsageError, match="no latents 'nothing'; there are: small, colours"):
        references.find_latents(colours, "nothing")


def test_latents_of_another_dataset_are_an_error(colours: Store) -> None:
    """Every command that takes --latents says so before a job starts."""
    calls = [
        lambda: train.train("ddpm", data="colours", latents="small"),
        lambda: tune.tune("ddpm", data="colours", latents="small"),
        lambda: tables.tables("colours", latents="small"),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="small-2c are latents of others-1b, not of colours-1a") as error:
            call()
        assert error.value.hint == "--data others-1b, or --latents auto"


def test_a_source_that_is_not_prepared_has_no_latents(colours: Store) -> None:
    """The cure makes the dataset and its latents."""
    with pytest.raises(UsageError, match="digits is not prepared yet") as error:
        tables.tables("digits", latents="colours")
    assert error.value.hint == "genflow tables --data digits --latents auto"


def test_the_plans_of_auto(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run of the tables lists the autoencoder and the latents first, and says that it estimates neither."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    tables.tables("digits", latents="auto", seeds=1, dry_run=True)
    shown = capsys.readouterr().out
    stages = [line.split()[0] for line in shown.splitlines() if line.strip()]
    assert stages.index("autoencoder") < stages.index("latents") < stages.index("flow-s0")
    assert "the autoencoder and the latents come first; the estimate does not contain them" in shown
    tables.tables("digits", latents="auto", seeds=1, dry_run=True, json=True)
    plan = {stage["stage"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert plan["flow-s0"]["needs"] == ["data", "latents"]
    assert plan["flow-grid-s0"]["needs"] == ["grid"]


def test_an_autoencoder_learns_pictures(colours: Store) -> None:
    """`--latents` with it is an error before a job or a pipeline is planned."""
    for latents in ("auto", "colours"):
        with pytest.raises(UsageError, match="an autoencoder learns pictures") as error:
            train.train("autoencoder", data="colours", latents=latents, dry_run=True)
        assert error.value.hint == "omit --latents, or name another family"


def test_none_is_a_word_of_recipes() -> None:
    """`--set data.latents=none` and `data: {latents: none}` mean what `--latents none` means."""
    assert compose("ddpm", assignments(["data.latents=none"])).data.latents == "none"
    assert compose("ddpm", {"data": {"latents": None}}).data.latents == "none"


def test_deleting_latents_names_the_runs_that_need_them(colours: Store) -> None:
    """An interrupted run needs its latents, its pairs and its initial run to resume."""
    folder = colours.folder("runs", "r-1")
    folder.mkdir(parents=True)
    recipe = compose("ddpm", {"data": {"name": "colours-1a", "latents": "colours-2a", "pairs": "p-1"}, "init": "r-0"})
    (folder / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    (folder / "facts.json").write_text("{}", encoding="utf-8")
    assert runs.sources_of(colours, "r-1") == {"colours-1a", "colours-2a", "p-1", "r-0"}
    for kind, id in (("latents", "colours-2a"), ("datasets", "colours-1a")):
        with pytest.raises(UsageError, match="r-1 began on it and can then not resume"):
            removal.remove(kind, id, yes=False)


def test_lists_name_latents(colours: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """`data ls` says what latents are of; `runs ls` has their column if a run has learned any."""
    data.list_data()
    assert "colours-2b  colours  colours-1a" in capsys.readouterr().out
    made(colours, "runs", "r-1", family="gan", dataset="colours-1a", latents="")
    runs_command.list_runs()
    assert "latents" not in capsys.readouterr().out
    made(colours, "runs", "r-2", family="gan", dataset="colours-1a", latents="colours-2b")
    runs_command.list_runs()
    head, _, first, second = capsys.readouterr().out.splitlines()
    at = head.index("latents")
    assert (first[at : at + 10].strip(), second[at : at + 10]) == ("", "colours-2b")
