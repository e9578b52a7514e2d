"""One store of small models for all tests of serving."""

from collections.abc import Iterator

import pytest
from served import client, listed, trained
from starlette.testclient import TestClient

from genflow.serving.entries import Entry
from genflow.store import Store


@pytest.fixture(scope="session")
def shelf_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Entry]]:
    store, runs = trained(tmp_path_factory.mktemp("serving") / "store")
    return store, listed(store, runs)


@pytest.fixture(scope="module")
def http(shelf_store: tuple[Store, list[Entry]]) -> Iterator[TestClient]:
    with client(shelf_store[1]) as made:
        yield made
