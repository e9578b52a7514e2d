"""A trial's trainable, without a cluster."""

from dataclasses import asdict
from pathlib import Path

from genflow.recipe.compose import compose
from genflow.tuning.trial import Task
from jobs.runtime.tune.searchers import HALT
from jobs.runtime.tune.trainable import TuneTrainable


def test_a_node_that_does_not_see_the_store_ends_the_search_in_a_line(tmp_path: Path) -> None:
    """The result has the error, and the metric, without which Tune accepts no result."""
    task = Task(
        store=str(tmp_path), folder=str(tmp_path / "searches/mine-1/trials"), metrics=("fd",), shares=(1.0,),
        recipe=compose("flow_matching", {}).model_dump_json(), dataset="digits-1", samples=16,
    )  # fmt: skip
    trainable = TuneTrainable.__new__(TuneTrainable)
    trainable.setup({"task": asdict(task), "reduction": 3, "trial": 0, "params": {}})
    result = trainable.step()
    assert result["done"]
    assert result["fd"] >= 1e12
    assert "does not see the store" in result[HALT][1]
