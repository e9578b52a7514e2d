"""The remaining time of `genflow tables`."""

import time
from typing import Any

import pytest

from genflow.cli.tables import RemainingWork


def test_the_first_estimate_counts_the_work_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages at a time, each as long as expected: the start of Ray and the second stage do not triple the rest."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    work = RemainingWork([], dict.fromkeys("abcd", 10.0), 40.0, cores=2)

    def at(seconds: float, **event: Any) -> float | None:
        nonlocal now
        now = 100.0 + seconds
        return work.update(event)

    assert at(0, event="stages", total=4) is None
    for name in "abcd":  # all are sent to Ray, and two of them begin
        assert at(0, event="stage", name=name, status="running") is None
    assert at(8, event="waiting", stage="train", of="a", what="starting") is None
    assert at(8, event="waiting", stage="train", of="b", what="starting") is None
    assert at(18, event="stage", name="a", status="done") == pytest.approx(10)
    assert at(18, event="waiting", stage="train", of="c", what="starting") is None
    assert at(18, event="stage", name="b", status="done") == pytest.approx(10)
    assert at(38, event="stage", name="c", status="done") == pytest.approx(10)  # alone, and twice as long
    assert at(50, event="stage", name="d", status="done") is None
