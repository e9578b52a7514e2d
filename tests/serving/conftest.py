"""Fixtures of the tests of serving: an HTTP client and a server."""

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.testclient import TestClient
from support.served import client

from genflow.serving import app
from genflow.serving.model_list import ServedModel
from genflow.serving.service import Service
from genflow.storage.store import Store
from genflow.system import environment


@pytest.fixture(scope="module")
def http(model_store: tuple[Store, list[ServedModel]]) -> Iterator[TestClient]:
    with client(model_store[1]) as made:
        yield made


@pytest.fixture(scope="module")
def server(model_store: tuple[Store, list[ServedModel]]) -> Iterator[str]:
    """The URL of a server in a thread of this process."""
    service, port = Service(model_store[1]), environment.free_port()
    running = uvicorn.Server(uvicorn.Config(app.create(service), port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    running.should_exit = True
    thread.join(timeout=30)
    service.close()
