"""Fixtures of the tests of serving: an HTTP client and a server."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient
from support import served

from genflow.serving.model_list import ServedModel
from genflow.storage.store import Store


@pytest.fixture(scope="module")
def http(model_store: tuple[Store, list[ServedModel]]) -> Iterator[TestClient]:
    with served.client(model_store[1]) as made:
        yield made


@pytest.fixture(scope="module")
def server(model_store: tuple[Store, list[ServedModel]]) -> Iterator[str]:
    """The URL of a server in a thread of this process."""
    with served.server(model_store[1]) as url:
        yield url
