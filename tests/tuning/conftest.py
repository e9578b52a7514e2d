"""The smallest possible task of a search."""

from collections.abc import Callable

import pytest

from genflow.data.shards import Dataset
from genflow.recipe.compose import compose
from genflow.recipe.files import dump
from genflow.sampling.engine import RECIPE
from genflow.storage.store import Store
from genflow.tuning.trial import Task

SMALL = {"data": {"name": "grid25"}, "net": {"kind": "mlp", "width": 16, "depth": 1}, "sample": {"steps": 2}}


@pytest.fixture
def task(store: Store, prepared: Callable[..., Dataset]) -> Task:
    """A task on points, with rungs after three and after nine steps."""
    data = prepared("grid25", samples=600, val=0.3)
    recipe = compose("flow_matching", SMALL, {"train": {"steps": 9, "batch": 8, "warmup": 0}})
    folder = store.folder("searches", "small") / "trials"
    folder.mkdir(parents=True)
    (folder / RECIPE).write_text(dump(recipe), encoding="utf-8")
    return Task(
        store=str(store.root), folder=str(folder), recipe=recipe.model_dump_json(), dataset=data.artifact.id,
        metrics=("fd",), shares=(1 / 3, 1.0), samples=32,
    )  # fmt: skip
