"""A population that is killed at every moment at which it can be, without a Ray: the end is the undisturbed one's."""

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


def worker(bench: TrialContext, tick: Callable[[], None]) -> Callable[[ray_pbt.Generation], None]:
    """Carries out a rung in this process; `tick` is called wherever a kill makes a difference."""
    def carry_out(generation: ray_pbt.Generation) -> None:
        number = 0
        while (given := generation.suggest(str(number))) != "FINISHED":
            tick()
            report = Trial(bench, given["trial"], given["params"]).report(given["rung"])
            tick()
            generation.on_trial_complete(str(number), {"fd": report["values"]["fd"]})
            tick()
            number += 1

    return carry_out


def told(record: TrialLog) -> list[Any]:
    rows = record.rows()
    return [(r["params"], r["values"], r["status"], pbt.schedule(record, r["trial"])) for r in rows]


@pytest.fixture
def search(store: Store, prepared: Callable[..., Dataset]) -> Search:
    """Four members over the bowl, measured three times."""
    prepared("grid25", samples=600, val=0.3)
    small = {"data": {"name": "grid25"}, "net": {"kind": "mlp", "width": 16, "depth": 1}}
    tuned = {"space": {"train.lr": "log:1e-4:1"}, "scheduler": "pbt", "trials": 4, "rungs": 3, "seed": 5}
    bowl = f"{TESTS / 'support/objectives.py'}:bowl"
    return plan(store, compose("flow_matching", small, {"tune": tuned}), bowl)


def trained(store: Store, search: Search, monkeypatch: pytest.MonkeyPatch, kill: int = -1) -> TrialLog:
    """The record of the search's population, killed at the given tick and gone on with."""
    begin(store, search)
    ticks = itertools.count()

    def tick() -> None:
        if next(ticks) == kill:
            raise Killed

    note, take = TrialLog.note, pbt.take_over
    with monkeypatch.context() as patch:
        patch.setattr(TrialLog, "note", lambda *args: (tick(), note(*args), tick()))
        patch.setattr(pbt, "take_over", lambda *args: (take(*args), tick()))
        while True:
            record = TrialLog(search.folder(store) / "trials")
            try:
                ray_pbt.train(store, search, record, PRESET, worker(TrialContext(search.task(store)), tick))
                return record
            except Killed:
                continue


def test_a_population_killed_anywhere_ends_as_if_nothing_had_been(store, search, monkeypatch, tmp_path):
    """Every moment in turn: the same settings, values, ends and schedules, and no rung measured twice."""
    whole = trained(store, search, monkeypatch)
    expected = told(whole)
    assert [len(whole.reports(number)) for number in range(4)] == [3, 3, 3, 3]
    assert {status for _, _, status, _ in expected} == {"finished"}
    assert all(pbt.taken(whole, turn) for turn in (1, 2))
    moments = 3 * 4 * 3 + 2 * 5  # of each trial and rung three, of each turn five around its two lines and one copy
    for kill in range(moments):
        other = Store(tmp_path / f"killed-{kill}")
        (other.root / "datasets").mkdir(parents=True, exist_ok=True)
        for path in (store.root / "datasets").iterdir():
            (other.root / "datasets" / path.name).symlink_to(path)
        record = trained(other, search, monkeypatch, kill)
        assert told(record) == expected, f"killed at moment {kill}"
        assert [len(record.reports(number)) for number in range(4)] == [3, 3, 3, 3]
