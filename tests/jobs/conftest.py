"""A store that the programs of jobs/ use when a test calls them in its own process."""

from collections.abc import Iterator

import pytest

from genflow.data.prepare import in_process, prepare
from genflow.recipe.schema import Data
from genflow.storage.store import Store


@pytest.fixture(scope="module")
def digits_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with digits; jobs of this process find it by the environment."""
    made = Store(tmp_path_factory.mktemp("jobs") / "store")
    prepare(made, Data(source="digits"), in_process, lambda event, **fields: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENFLOW_STORE", str(made.root))
        yield made
