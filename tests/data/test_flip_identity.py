"""Flips belong to a run's identity if they change it, and are refused for points."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genflow import runs
from genflow.data.pairs import write_pairs
from genflow.data.shards import Dataset
from genflow.errors import UsageError
from genflow.recipe.schema import Recipe, parse
from genflow.storage.store import Store


def recipe(dataset: Dataset, **data: object) -> Recipe:
    return parse({"data": {"name": dataset.artifact.id, **data}, "family": {"kind": "flow_matching"}})


def test_flips_change_the_id(store: Store, prepared: Callable[..., Dataset]) -> None:
    """A run with flips is another run; settings of the dataset, which it was prepared with, change no id."""
    data = prepared("digits")
    plain = runs.plan(store, recipe(data)).id
    assert runs.plan(store, recipe(data, flip=True)).id != plain
    for same in ({"flip": False}, {"crop": "none"}, {"bits": 12}):
        assert runs.plan(store, recipe(data, **same)).id == plain


def test_flips_do_not_change_a_run_on_pairs(store: Store, prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    data = prepared("digits")
    with store.stage("pairs", "p-1", name="p") as staged:
        noise = np.zeros((4, 1, 8, 8), np.float32)
        write_pairs(staged.path / "0.arrow", data.facts, np.arange(4), np.zeros(4), noise, noise)
        staged.commit(meta={"dataset": data.artifact.id})
    ids = {runs.plan(store, recipe(data, pairs="p-1", flip=flip)).id for flip in (False, True)}
    assert len(ids) == 1


def test_points_are_not_flipped(store: Store, prepared: Callable[..., Dataset]) -> None:
    with pytest.raises(UsageError, match="contains points"):
        runs.plan(store, recipe(prepared("ring8", samples=200), flip=True))
