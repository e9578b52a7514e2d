"""Names of several artifacts: a command says which one it means, and none is deleted while it is used."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.commands import Command, in_this_process
from support.small import recipe
from support.trained_run import trained_run

from genflow import runs
from genflow.evaluation.report import reproduce
from genflow.storage.files import write_atomically
from genflow.storage.store import Store
from jobs import prepare, train

POINTS = {"name": "emoji", "samples": 200}


@pytest.fixture
def genflow(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    """Run a command in this process; return (exit code, standard output, standard error)."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    return in_this_process(monkeypatch, capsys)


def test_a_cached_prepare_changes_what_the_name_means(genflow: Command, store: Store, prepared: Any) -> None:
    """`train` prints the id, the rows and the shape of the dataset that prepare named last, also in a pipeline."""
    moons, ring = (prepared(source, **POINTS).artifact for source in ("moons", "ring8"))
    dry = ("train", "flow_matching", "--data", "emoji", "--dry-run")
    code, _, err = genflow(*dry)
    assert (code, moons.id in err, ring.id in err) == (2, True, True)
    for source, meant, other in (("moons", moons, ring), ("ring8", ring, moons), ("moons", moons, ring)):
        document = {"recipe": {"data": {"source": source, **POINTS}}}
        # `main` is what the command runs, `find` is what a pipeline asks first
        done = (prepare.main if source == "moons" else lambda d, e: prepare.find(d))(document, lambda *_, **__: None)
        assert done is not None
        assert done["cached"]
        code, out, err = genflow(*dry)
        assert code == 0
        assert f"emoji means {meant.id}, prepared last; the name also belongs to {other.id}" in err
        assert f"data     {meant.id}: 180 train + 20 val rows · points in the plane" in err
        assert f"name: {meant.id}" in out
    _, out, _ = genflow("data", "show", ring.id, "-o", str(store.root / "preview.png"))
    assert f"--data {ring.id}" in out


def test_data_show_prints_captions(genflow: Command, prepared: Any, tmp_path: Path) -> None:
    """`data show` prints the number of rows with captions and two that differ; `--json` has them."""
    for number in range(4):
        Image.effect_noise((8, 8), 99).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(("a cat", "a cat", "x" * 70, "")[number], encoding="utf-8")
    made = prepared(tmp_path, val=0).artifact
    show = ("data", "show", made.id, "-o", str(tmp_path / "preview"))
    code, out, _ = genflow(*show)
    assert code == 0
    assert f"captions     3 of 4 rows, such as 'a cat', '{'x' * 60}…'" in out
    assert "warning      1 of 4 pictures have no caption, first 3.png" in out
    assert json.loads(genflow(*show, "--json")[1])["captions"] == {"rows": 3, "examples": ["a cat", "x" * 70]}


def test_the_name_of_one_dataset_stays_the_name(genflow: Command, prepared: Any) -> None:
    """Nothing is said about a name that is not shared, and hints use it."""
    made = prepared("moons", **POINTS).artifact
    code, _, err = genflow("train", "flow_matching", "--data", "emoji", "--dry-run")
    assert (code, err) == (0, f"data     {made.id}: 180 train + 20 val rows · points in the plane\n")


def test_a_new_run_of_an_old_name_says_what_differs(store: Store, prepared: Any) -> None:
    """Recipe keys with both values, the dataset, or the code; nothing for the first run, or for the same one."""
    moons, ring = (prepared(source, **POINTS) for source in ("moons", "ring8"))

    def plan(data: Any, **settings: Any) -> runs.RunPlan:
        named = {"name": "r", "data": {"name": data.artifact.id}, "train": {"steps": 20, "batch": 16, **settings}}
        return runs.plan(store, recipe("flow_matching", data.facts, "mlp", **named))

    first = plan(moons)
    assert runs.difference(store, first) == ""
    runs.create_folder(store, first)
    assert runs.difference(store, first) == ""
    said = runs.difference(store, plan(moons, lr=0.5))
    assert f"{first.id} has the same name, unfinished. It differs in train.lr" in said
    assert said.endswith("-> 0.5")
    said = runs.difference(store, plan(ring))
    assert said.endswith(f"It differs in data {moons.artifact.id} -> {ring.artifact.id}")
    store.folder("runs", first.id).rename(store.folder("runs", "r-0123456789"))  # the same recipe with other code
    assert runs.difference(store, first).endswith("It differs in the code of genflow")
    write_atomically(store.folder("runs", "r-0123456789") / "recipe.yaml", "name: [")
    assert runs.difference(store, first).endswith("the version of genflow that began it")


def test_a_name_of_several_runs_is_said(genflow: Command, store: Store, prepared: Any) -> None:
    """The newest is meant, and a line names the others; none of several is deleted by name."""
    data = prepared("moons", **POINTS)
    old, new = (trained_run(store, data, "flow_matching", "r", steps=steps) for steps in (2, 3))
    code, out, err = genflow("runs", "show", "r")
    assert (code, new.id in out) == (0, True)
    assert err == f"note: r means {new.id}, the newest; the name also belongs to {old.id}\n"
    code, _, err = genflow("runs", "rm", "r", "--yes")
    assert code == 2
    assert f"2 runs are named r: {', '.join(sorted([old.id, new.id]))}" in err
    code, out, _ = genflow("runs", "rm", old.id, "--yes")
    assert (code, out) == (0, f"deleted  {old.id}\n")
    assert [run.id for run in store.artifacts("runs")] == [new.id]
    assert not list((store.root / "journals").glob(f"{old.id}.*"))


def test_what_is_used_is_not_deleted(genflow: Command, store: Store, prepared: Any) -> None:
    """A dataset that a run trains on, and a run that trains; finished runs that need it are named."""
    data = prepared("moons", **POINTS).artifact
    with store.lock("runs", "r-1", uses=[data.id]):
        code, _, err = genflow("data", "rm", "emoji", "--yes")
        assert code == 2
        assert f"dataset {data.id} is used now by runs/r-1 (process {store.holder('runs', 'r-1')})" in err
        write_atomically(store.folder("runs", "r-1") / "recipe.yaml", f"data: {{name: {data.id}}}\nfamily: {{}}")
        write_atomically(store.folder("runs", "r-1") / "facts.json", "{}")
        code, _, err = genflow("runs", "rm", "r-1", "--yes")
        assert (code, "run r-1 is being made by process" in err) == (2, True)
        assert "training: process" in genflow("runs", "ls")[1]
    assert "unfinished: run the same command to resume" in genflow("runs", "ls")[1]
    run = trained_run(store, prepared("moons", **POINTS), "flow_matching", "done", steps=2)
    code, _, err = genflow("data", "rm", "emoji")
    assert code == 2
    assert f"{run.id} came from it and can then not be evaluated" in err
    assert "r-1 began on it and can then not resume" in err
    assert genflow("runs", "rm", "r-1", "--yes")[0] == 0
    assert store.names("runs") == [run.id]
    assert genflow("data", "rm", "emoji", "--yes")[0] == 0
    assert store.names("datasets") == []
    assert [file.name for file in (store.root / "locks").iterdir() if data.id in file.name or "r-1" in file.name] == []


def test_a_half_deleted_checkpoint_is_not_a_part_of_the_run(store: Store, prepared: Any) -> None:
    """The manifest of a run lists no file of a checkpoint that a killed process deleted by half."""
    data = prepared("moons", **POINTS)
    plan = runs.plan(store, recipe("flow_matching", data.facts, "mlp", data={"name": data.artifact.id}))
    folder = store.folder("runs", plan.id)
    write_atomically(folder / "checkpoints" / "step_1" / "state.json", "{}")
    write_atomically(folder / "checkpoints" / "step_2" / "state.json", "{}")
    write_atomically(folder / "checkpoints" / "step_2" / "manifest.json", '{"files": {"state.json": {}}}')
    whole = train._is_whole(store, plan)
    files = ["recipe.yaml", "checkpoints/step_2/state.json"]
    assert [name for name in [*files, "x.tmp-1", "checkpoints/step_1/state.json"] if whole(name)] == files


def test_the_commands_of_a_report_name_the_dataset_by_its_id(store: Store, prepared: Any) -> None:
    """The name may mean another dataset when the commands are run; a run's name only if no other run has it."""
    data = prepared("moons", **POINTS)
    _, second = (trained_run(store, data, "flow_matching", "r", steps=steps) for steps in (2, 3))
    row = {"run": second.id, "dataset": data.artifact.id, "evaluate": {}}
    *_, again, compare = [shlex.split(line) for line in reproduce.commands(store, [row])]
    assert again[again.index("--data") + 1] == data.artifact.id
    assert compare[2] == second.id
