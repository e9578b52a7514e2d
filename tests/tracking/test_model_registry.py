"""Aliases of MLflow's model registry refer to runs, in a real MLflow."""

import pytest
from support.trained_run import trained_run

from genflow.commands.references import find_run
from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.errors import UsageError
from genflow.recipe.schema import Data
from genflow.storage.store import Artifact, Store
from genflow.tracking import model_registry

Runs = tuple[Store, list[Artifact]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Artifact]]:
    """A store with two runs that are not registered in MLflow."""
    store = Store(tmp_path_factory.mktemp("registry"))
    data = Dataset.open(prepare(store, Data(source="digits"), in_process, lambda event, **fields: None)[0])
    return store, [trained_run(store, data, "vae", name=f"vae-{i}", steps=2 + i) for i in range(2)]


def test_an_alias_moves_from_run_to_run(runs: Runs) -> None:
    """`models:/NAME@ALIAS` is the run that was promoted last, and a version always refers to the same run."""
    store, (first, second) = runs
    for run in (first, second, first):
        assert model_registry.promote(store, run, "pictures", "champion") == "models:/pictures@champion"
        assert find_run(store, "models:/pictures@champion").id == run.id
    assert find_run(store, "models:/pictures/1").id == first.id
    assert find_run(store, "models:/pictures/2").id == second.id
    assert find_run(store, "models:/pictures").id == second.id
    assert find_run(store, model_registry.promote(store, second, "", "best")).id == second.id


@pytest.mark.parametrize(
    ("reference", "message"),
    [("models:/missing@champion", "missing"), ("models:/a/b/c", "is not a model reference"),
     ("models:/missing", "no model missing")],
)
def test_an_unknown_reference_is_a_one_line_error(runs: Runs, reference: str, message: str) -> None:
    """An unknown or invalid reference is a one-line error with a hint."""
    with pytest.raises(UsageError, match=message) as refused:
        find_run(runs[0], reference)
    assert "\n" not in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(("name", "alias"), [("a/b", "champion"), ("a", "latest"), ("a", "v1"), ("a", "")])
def test_invalid_names_are_rejected_before_any_request(runs: Runs, name: str, alias: str) -> None:
    """An invalid name or alias is an error before any request."""
    with pytest.raises(UsageError):
        model_registry.promote(runs[0], runs[1][0], name, alias)


def test_promoting_keeps_the_runs_end(runs: Runs) -> None:
    """Promoting a run a second time does not change its status and end time in MLflow."""
    store, (_, run) = runs
    ends = []
    for name in ("one", "two"):
        model_registry.promote(store, run, name, "champion")
        with model_registry._client(store) as client:
            version = client.get_model_version_by_alias(name, "champion")
            info = client.get_run(version.run_id).info
        ends.append((info.status, info.end_time))
    assert ends[0] == ends[1]
