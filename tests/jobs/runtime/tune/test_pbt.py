"""A population that is killed at any moment ends like an uninterrupted one; without Ray."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from support import TESTS

from genflow.data.shards import Dataset
from genflow.recipe.compose import compose
from genflow.storage.store import Store
from genflow.tuning import pbt
from genflow.tuning.search import Search, begin, plan
from genflow.tuning.trial import Trial, TrialContext
from genflow.tuning.trial_log import TrialLog
from jobs.runtime.tune import pbt as ray_pbt

PRESET = {"train.lr": 0.5}


class Killed(BaseException):
    """kill -9."""


def runner(context: TrialContext, tick: Callable[[], None]) -> Callable[[ray_pbt.RungSearcher], None]:
    """Run a rung in this process; call `tick` at every point where a kill makes a difference."""
    def run_trials(members: ray_pbt.RungSearcher) -> None:
        number = 0
        while (given := members.suggest(str(number))) != "FINISHED":
            tick()
            report = Trial(context, given["trial"], given["params"]).report(given["rung"])
            tick()
            members.on_trial_complete(str(number), {"fd": report["values"]["fd"]})
            tick()
            number += 1

    return run_trials


def outcome(trial_log: TrialLog) -> list[Any]:
    rows = trial_log.rows()
    return [(r["params"], r["values"], r["status"], pbt.schedule(trial_log, r["trial"])) for r in rows]


@pytest.fixture
def search(store: Store, prepared: Callable[..., Dataset]) -> Search:
    """Four members over the bowl, measured three times."""
    prepared("grid25", samples=600, val=0.3)
    small = {"data": {"name": "grid25"}, "net": {"kind": "mlp", "width": 16, "depth": 1}}
    tuned = {"space": {"train.lr": "log:1e-4:1"}, "scheduler": "pbt", "trials": 4, "rungs": 3, "seed": 5}
    bowl = f"{TESTS / 'support/objectives.py'}:bowl"
    return plan(store, compose("flow_matching", small, {"tune": tuned}), bowl)


def trained(store: Store, search: Search, monkeypatch: pytest.MonkeyPatch, kill: int = -1) -> TrialLog:
    """The log of the search's population, killed at the given tick and resumed."""
    begin(store, search)
    ticks = itertools.count()

    def tick() -> None:
        if next(ticks) == kill:
            raise Killed

    note, take = TrialLog.append, pbt.copy_weights
    with monkeypatch.context() as patch:
        patch.setattr(TrialLog, "append", lambda *args: (tick(), note(*args), tick()))
        patch.setattr(pbt, "copy_weights", lambda *args: (take(*args), tick()))
        while True:
            trial_log = TrialLog(search.folder(store) / "trials")
            try:
                ray_pbt.train(store, search, trial_log, PRESET, runner(TrialContext(search.task(store)), tick))
                return trial_log
            except Killed:
                continue


def test_a_population_killed_at_any_moment_ends_like_an_uninterrupted_one(store, search, monkeypatch, tmp_path):
    """For every moment: the same settings, values, statuses and schedules, and no rung is measured twice."""
    whole = trained(store, search, monkeypatch)
    expected = outcome(whole)
    assert [len(whole.reports(number)) for number in range(4)] == [3, 3, 3, 3]
    assert {status for _, _, status, _ in expected} == {"finished"}
    assert all(pbt.exploits_at(whole, rung) for rung in (1, 2))
    moments = 3 * 4 * 3 + 2 * 5  # three a trial and rung; five an exploit, around its two lines and one copy
    for kill in range(moments):
        other = Store(tmp_path / f"killed-{kill}")
        (other.root / "datasets").mkdir(parents=True, exist_ok=True)
        for path in (store.root / "datasets").iterdir():
            (other.root / "datasets" / path.name).symlink_to(path)
        trial_log = trained(other, search, monkeypatch, kill)
        assert outcome(trial_log) == expected, f"killed at moment {kill}"
        assert [len(trial_log.reports(number)) for number in range(4)] == [3, 3, 3, 3]
