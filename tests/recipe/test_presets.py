"""The page of searches lists the results, and marks a difference that new seeds do not confirm."""

import argparse
from typing import Any

import pytest

from benchmarks import presets
from genflow.storage.store import Store
from genflow.tuning import analysis


def searched(confirmed: tuple[list[float], list[float]] | None) -> dict[str, Any]:
    """A `genflow.tune/1` document of two trials."""
    rows = [
        {"trial": n, "status": "finished", "step": 600, "params": {"train.lr": rate}, "values": {"fd": fd}}
        for n, rate, fd in ((1, 0.03125, 2.5), (0, 0.02, 3.25))
    ]
    proof = None
    if confirmed:
        mine, theirs = ([{"status": "finished", "values": {"fd": fd}} for fd in side] for side in confirmed)
        proof = analysis.confirmation(mine, theirs, "fd")
    return {
        "search": "gan-fashion-0", "dataset": "fashion-1", "dataset_name": "fashion", "metrics": ["fd"], "samples": 500,
        "seconds": 12.0, "space": {"train.lr": "log:0.004:0.1"}, "tune": {"steps": 600},
        "importance": {"train.lr": 0.75},
        "counts": {"finished": 2, "stopped": 0, "diverged": 0, "failed": 0}, "best": rows[0], "preset": rows[1],
        "ranked": rows, "confirmation": proof, "confirmed": analysis.confirmation_text(proof, "fd") if proof else "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("confirmed", "says"),
    [
        (([2.0, 2.1, 1.9], [3.0, 3.1, 2.95]), "| 2, 2.1, 1.9 | 3, 3.1, 2.95 | -1.02 (-1.09 to -0.945) | confirmed |"),
        (([2.0, 3.1, 1.9], [3.0, 2.1, 2.95]), "| not confirmed |"),
        (None, "| 600 | 2 finished | — | — | — | the preset is the best that was tried |"),
    ],
)
def test_the_page_lists_the_results_of_searches(confirmed: Any, says: str, store: Store) -> None:
    """The first table has the confirmation; below it are the space, the settings, the importance and every trial."""
    asked = argparse.Namespace(data="fashion", trials=2, family=["gan"], confirm=None)
    text = presets.page({"gan": searched(confirmed)}, asked, store)
    assert says in text
    assert "made by `python -m benchmarks.presets --data fashion --family gan --trials 2`" in text
    assert "| train.lr | `log:0.004:0.1` | 0.02 | 0.03125 | 75 % |" in text
    assert "| 1 | finished | 600 | 2.5 | 0.03125 |" in text
    assert "`genflow tune gan --data fashion --trials 2 " in text
