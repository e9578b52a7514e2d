"""A search as a job, over functions with a known optimum and over a tiny net: its results, and how it resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import TESTS
from support.objectives import bowl

from genflow.data.prepare import in_process, prepare
from genflow.errors import GenflowError, UsageError
from genflow.recipe.compose import compose
from genflow.recipe.schema import Data, parse
from genflow.storage.store import Store
from genflow.system.source_hash import resources_dir
from genflow.tuning.search import plan
from genflow.tuning.trial_log import TrialLog
from jobs import tune

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("without_mlflow")]
LR = {"train.lr": "log:1e-4:1"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with a few points of grid25."""
    store = Store(tmp_path_factory.mktemp("tune") / "store")
    prepare(store, Data(source="grid25", samples=600, val=0.3), in_process, lambda event, **fields: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENFLOW_STORE", str(store.root))
        yield store


def document(objective: str = "", *, space: dict[str, Any] = LR, **tuned: Any) -> dict[str, Any]:
    """A search over a function of `objectives`, or over a tiny net."""
    small = {"data": {"name": "grid25"}, "net": {"kind": "mlp", "width": 16, "depth": 1}, "sample": {"steps": 2}}
    budget = {"train": {"steps": 18, "batch": 8, "warmup": 0}}
    recipe = compose("flow_matching", small, budget, {"tune": {"space": space, **tuned}})
    inputs = {"objective": f"{TESTS / 'support/objectives.py'}:{objective}"} if objective else {}
    return {"recipe": recipe.model_dump(mode="json"), "inputs": inputs}


def search(described: dict[str, Any]) -> dict[str, Any]:
    return tune.main(described, lambda event, **fields: None)


def test_tpe_comes_closer_to_a_known_optimum_than_random_search(ray_local, store):
    """The bowl's minimum is 0; the preset is the first trial; the same search again is cached."""
    from jobs.runtime.tune import searchers

    space = {**LR, "train.ema": "uniform:0.01:0.2"}
    settings = {"space": space, "trials": 24, "scheduler": "none", "seed": 1}
    found = search(document("bowl", searcher="tpe", **settings))
    described = document("bowl", searcher="random", **settings)
    chance = searchers.predefined_settings(plan(store, parse(described["recipe"]), described["inputs"]["objective"]))
    assert found["counts"]["finished"] == len(chance) == 24
    assert found["best"]["values"]["fd"] < 0.05
    assert found["best"]["values"]["fd"] <= min(bowl(params, 1.0) for params in chance)
    assert found["trials"][0]["params"] == {"train.lr": 0.02, "train.ema": 0.1}
    assert found["importance"]["train.lr"] > 0.8
    again = search(document("bowl", searcher="tpe", **settings))
    assert again["cached"]
    assert again["trials"] == found["trials"]


def test_a_grid_tries_every_point_once_and_asha_stops_the_worse(ray_local, store):
    """Of nine points ASHA trains only some to the full budget, and the best is among them."""
    space = {"train.lr": "log:1e-4:1:3", "train.ema": [0.05, 0.1, 0.2]}
    found = search(document("bowl", space=space, searcher="grid", scheduler="asha"))
    assert len({json.dumps(row["params"]) for row in found["trials"]}) == 9
    assert found["counts"]["stopped"] > 0
    assert found["best"]["params"] == {"train.lr": 0.01, "train.ema": 0.1}
    assert found["best"]["share"] == 1


def test_a_trial_that_fails_is_a_result(ray_local, store):
    """An error or a NaN ends only its own trial; if no trial has a value, the job fails with the reason."""
    space = {"train.lr": [0.001, 0.02, 0.5]}
    found = search(document("bad", space=space, searcher="grid"))
    assert [row["status"] for row in found["trials"]] == ["failed", "finished", "diverged"]
    assert "too low" in found["trials"][0]["why"]
    with pytest.raises(GenflowError, match="has a result: ValueError: the rate is too low"):
        search(document("bad", space={"train.lr": [0.001, 0.002]}, searcher="grid"))


def test_a_target_ends_the_search(ray_local, store):
    """No trial starts after one has reached the target."""
    found = search(document("bowl", searcher="random", trials=40, scheduler="none", target=0.5))
    assert len(found["trials"]) < 40
    assert found["target_reached"]


def test_two_metrics_make_a_front(ray_local, store):
    """Each number of steps is Pareto-optimal."""
    described = document("trade", space={"sample.steps": [1, 2, 4, 8]}, searcher="grid", scheduler="none",
                         metric=["fd", "ms"])  # fmt: skip
    found = search(described)
    assert [row["values"]["ms"] for row in found["front"]] == [8, 4, 2, 1]


def test_a_search_over_a_net_trains_measures_and_confirms(ray_local, store):
    """It gives fd of samples, a recipe with the best settings, and their difference from the preset on fresh seeds."""
    found = search(document(searcher="grid", space={"train.lr": [0.002, 0.05]}, samples=32, confirm=2, steps=9))
    assert found["counts"]["finished"] + found["counts"]["stopped"] == 2
    assert all("fd" in row["values"] for row in found["trials"])
    assert found["confirmation"]["seeds"] == 2
    assert found["confirmation"]["difference"]["n"] == 2
    best = yaml.safe_load(Path(found["best_file"]).read_text(encoding="utf-8"))
    assert best["train"]["lr"] == found["best"]["params"]["train.lr"]
    assert best["train"]["steps"] == 18
    assert best["data"] == {"name": "grid25"}
    assert (Path(found["path"]) / "grid.png").exists()
    assert found["cached"] is False


def test_a_longer_search_continues_from_a_shorter_one(ray_local, store, tmp_path):
    """Six trials after three call the objective three times, with the same results as six at once; all are tracked."""
    count, file = tmp_path / "counted", tmp_path / "mine.py"
    file.write_text(
        "def f(params, share):\n"
        f"    open({str(count)!r}, 'a').write(f\"{{params['train.lr']!r}}\\n\")\n"
        "    return abs(params['train.lr'] - 0.01)\n", encoding="utf-8"
    )
    settings = {"searcher": "tpe", "scheduler": "none"}

    def counting(trials: int) -> dict[str, Any]:
        described = document(trials=trials, seed=9, **settings)
        return search({**described, "inputs": {"objective": f"{file}:f"}})

    few = counting(3)
    asked = count.read_text(encoding="utf-8").splitlines()
    many = counting(6)
    assert count.read_text(encoding="utf-8").splitlines()[:3] == asked
    assert len(count.read_text(encoding="utf-8").splitlines()) == 6
    assert many["trials"][:3] == few["trials"]
    text = file.read_text(encoding="utf-8") + "# another function, so that nothing is found\n"
    file.write_text(text, encoding="utf-8")
    assert [row["params"] for row in many["trials"]] == [row["params"] for row in counting(6)["trials"]]

    net = {"searcher": "grid", "space": {"train.lr": [0.003, 0.03]}, "samples": 32, "steps": 9}
    one, two = (search(document(confirm=0, target=target, **net)) for target in (None, 0.0))
    assert two["search"] != one["search"]
    assert two["trials"] == one["trials"]
    children = sorted((store.root / "journals").glob(f"{two['search']}.*.jsonl"))
    assert len(children) == 2
    assert '"trial/fd"' in children[0].read_text(encoding="utf-8")


def test_a_population_continues_from_its_best(ray_local, store):
    """The worst member copies the best's weights and changes the settings; all finish; the schedule has them all."""
    found = search(document(scheduler="pbt", trials=4, rungs=2, samples=32, confirm=0, steps=6))
    assert found["counts"]["finished"] == 4
    folder = Path(found["path"]) / "trials"
    lines = [[json.loads(line) for line in (folder / f"000{i}/reports.jsonl").open(encoding="utf-8")] for i in range(4)]
    assert [[report["step"] for report in member] for member in lines] == [[3, 6]] * 4
    exploits = {entry["turn"]: entry["taken"] for entry in TrialLog(folder).entries() if "taken" in entry}
    assert {rung: len(copies) for rung, copies in exploits.items()} == {1: 1}
    for rung, copies in exploits.items():
        (worst, got), = copies.items()
        order = sorted(range(4), key=lambda i: lines[i][rung - 1]["values"]["fd"])
        assert (int(worst), got["from"]) == (order[-1], order[0])
        assert lines[int(worst)][rung]["params"] == got["params"]
        assert 1e-4 <= got["params"]["train.lr"] <= 1
    (worst, got), = exploits[1].items()
    last = next(row for row in found["trials"] if row["trial"] == int(worst))
    assert [stage["trial"] for stage in last["schedule"]] == [got["from"], int(worst)]


def test_an_invalid_search_is_rejected_before_anything_starts(store):
    """Without Ray: an unknown metric, a grid over a range, a population whose weights do not fit."""
    for settings, says in [
        ({"metric": ["fid"]}, "unknown metric 'fid'"),
        ({"searcher": "grid"}, "a grid needs a finite number of values of train.lr"),
        ({"scheduler": "pbt", "space": {"net.width": "int:8:16"}}, "do not fit another net.width"),
        ({"scheduler": "pbt", "space": {"train.batch": "int:8:16"}}, "do not fit another train.batch"),
        ({"scheduler": "pbt", "trials": 1}, "two members and two rungs"),
    ]:
        with pytest.raises(UsageError, match=says):
            search(document(**settings))


@pytest.fixture
def job(store: Store, tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """`job(described)` starts a search in another process."""
    def start(described: dict[str, Any], **variables: str) -> subprocess.Popen:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(described), encoding="utf-8")
        env = {**os.environ, "PYTHONPATH": str(resources_dir()), "GENFLOW_STORE": str(store.root), **variables}
        return subprocess.Popen([sys.executable, "-m", "jobs.tune", str(file)], env=env, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)  # fmt: skip

    return start


@pytest.mark.slow
def test_two_concurrent_trials_survive_a_killed_worker(store, job, tmp_path):
    """kill -9 of a trial's process between two rungs: every trial has a result, and no rung is measured twice."""
    count = tmp_path / "counted"
    settings = {"space": {"train.lr": [0.001, 0.01, 0.1, 0.3]}, "searcher": "grid", "scheduler": "asha", "rungs": 2,
                "reduction": 2}  # fmt: skip
    described = document("deadly", **settings)
    described["recipe"]["cluster"]["workers"] = 2
    process = job(described, COUNTED=str(count), COUNTED_S="0.2")
    assert process.wait() == 0
    assert count.with_suffix(".killed").exists()
    assert max(Counter(count.read_text(encoding="utf-8").splitlines()).values()) == 1
    found = search(described)
    assert found["cached"]
    assert len(found["trials"]) == 4
    assert {row["status"] for row in found["trials"]} <= {"finished", "stopped"}
    assert all("fd" in row["values"] for row in found["trials"])


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["asha", "pbt"])
def test_a_killed_search_loses_no_trial_and_ends_like_an_uninterrupted_one(ray_local, store, job, tmp_path, scheduler):
    """kill -9 of the driver: no rung is measured twice, and every trial equals the uninterrupted search's."""
    count = tmp_path / "counted"
    settings = {"trials": 12 if scheduler == "asha" else 4, "searcher": "tpe", "scheduler": scheduler, "seed": 5}
    process = job(document("counted", **settings), COUNTED=str(count), COUNTED_S="0.4")
    while not count.exists() or len(count.read_text(encoding="utf-8").splitlines()) < 7:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)  # the killed driver's worker may still write
    before = count.read_text(encoding="utf-8").splitlines()

    process = job(document("counted", **settings), COUNTED=str(count), COUNTED_S="0")
    assert process.wait() == 0
    asked = count.read_text(encoding="utf-8").splitlines()
    assert len(before) >= 7
    assert max(Counter(asked).values()) == 1
    killed = search(document("counted", **settings))
    assert killed["cached"]
    whole = search(document("bowl", **settings))

    def outcome(found: dict[str, Any]) -> list[Any]:
        return [(row["params"], row["values"], row["status"]) for row in found["trials"]]

    assert outcome(killed) == outcome(whole)
