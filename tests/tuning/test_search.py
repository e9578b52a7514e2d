"""Plan a search: its rungs, the preset in its space, its id."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genflow import build, families
from genflow.data.shards import Dataset
from genflow.errors import UsageError
from genflow.recipe.compose import compose
from genflow.storage.store import Store
from genflow.tuning import space
from genflow.tuning.search import plan


@pytest.mark.parametrize(
    ("steps", "warmup", "tune", "rungs"),
    [
        (9000, 50, {}, [1000, 3000, 9000]),
        (900, 50, {}, [300, 900]),
        (900, 0, {}, [100, 300, 900]),
        (180, 50, {}, [180]),
        (180, 50, {"scheduler": "pbt", "rungs": 2}, [90, 180]),
        (9000, 50, {"scheduler": "none"}, [9000]),
    ],
)
def test_no_rung_is_within_four_warm_ups(
    store: Store, prepared: Callable[..., Dataset], steps: int, warmup: int, tune: dict[str, Any], rungs: list[int]
) -> None:
    """Rungs of successive halving come after four warm-ups; a population's rungs are evenly spaced."""
    prepared("grid25", samples=600, val=0.3)
    small = {"data": {"name": "grid25"}, "net": {"kind": "mlp", "width": 16, "depth": 1}, "sample": {"steps": 2}}
    search = plan(store, compose("flow_matching", small, {"train": {"steps": steps, "warmup": warmup}, "tune": tune}))
    assert [round(share * steps) for share in search.shares] == rungs


@pytest.mark.parametrize(
    ("family", "source"),
    [
        (kind, source)
        for kind in families.kinds()
        for source in ("digits", "grid25")
        if source == "digits" or not families.family_class(kind).is_autoencoder
    ],
)
def test_a_preset_is_in_its_own_space(prepared: Callable[..., Dataset], family: str, source: str) -> None:
    """So every search starts with the preset; a value that the preset leaves to the family is the family's choice."""
    facts, recipe = prepared(source, samples=100).facts, compose(family)
    required = families.family_class(family).teacher == "required"
    init = build.resolve(compose("flow_matching"), facts) if required else None
    resolved = build.resolve(recipe, facts, init)
    found = space.space_of(recipe, resolved, facts)
    own = space.preset_values(resolved, found, facts)
    assert {key: value for key, value in own.items() if not found[key].contains(value)} == {}


def test_another_function_is_another_search(store: Store, prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """A changed objective file gives another id; a file that does not run gives a one-line error."""
    prepared("grid25", samples=600, val=0.3)
    recipe, file = compose("flow_matching", {"data": {"name": "grid25"}}), tmp_path / "mine.py"
    found = []
    for text in ("def f(params, share): return 1", "def f(params, share): return 2"):
        file.write_text(text, encoding="utf-8")
        found.append(plan(store, recipe, f"{file}:f").id)
    assert found[0] != found[1]
    file.write_text("def f(:", encoding="utf-8")
    with pytest.raises(UsageError, match=r"no objective .*SyntaxError"):
        plan(store, recipe, f"{file}:f")
