"""Fixtures that several test folders share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before importing torch: two threads on a busy machine are ten times slower
# before importing Ray, which reads these variables once per process
os.environ.update(RAY_AUTH_MODE="token", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")

from genflow.data.prepare import here, prepare
from genflow.data.shards import Dataset
from genflow.recipe.schema import Data
from genflow.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def prepared(store: Store) -> Callable[..., Dataset]:
    """`prepared(source, size=..., ...)` prepares a dataset in this process and opens it."""

    def make(source: str | Path, **options: object) -> Dataset:
        artifact, _ = prepare(store, Data(source=str(source), **options), here, lambda event, **fields: None)
        return Dataset.open(artifact)

    return make


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray with two CPUs for the whole session, because starting it takes five seconds."""
    from jobs.runtime.cluster import ray_cluster

    with ray_cluster(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """An S3 server with a bucket (see bucket.py)."""
    from support.bucket import Server

    server = Server()
    server.create("bucket")
    yield server
    server.close()
