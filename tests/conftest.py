"""Fixtures that several folders of tests share."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: with two threads on a busy machine it is ten times slower
# before Ray: it reads them once a process, whichever test is the first to import it
os.environ.update(RAY_AUTH_MODE="token", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")

import torch

from genflow.data.preparing import here, prepare
from genflow.data.shards import Dataset
from genflow.maths.precision import multiplies_bfloat16
from genflow.recipe import Data
from genflow.store import Store

# A shell starts a background job with SIGINT ignored. Processes that the tests start inherit that, and some tests
# interrupt such a process, or this one.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(params=["float32", "bfloat16"])
def number_format(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Training on a chip that multiplies bfloat16 in hardware, or on one that does not, whatever this one does."""
    fast = request.param == "bfloat16"
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: fast)
    assert multiplies_bfloat16(torch.device("cpu")) == fast
    return request.param


@pytest.fixture
def prepared(store: Store) -> Callable[..., Dataset]:
    """`prepared(source, size=..., ...)` prepares a dataset in this process and opens it."""

    def make(source: str | Path, **options: object) -> Dataset:
        artifact, _ = prepare(store, Data(source=str(source), **options), here, lambda event, **fields: None)
        return Dataset.open(artifact)

    return make


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One Ray with two CPUs for the whole session: starting it takes five seconds."""
    from jobs.cluster import ray_cluster

    with ray_cluster(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """An S3 server with a bucket (see bucket.py)."""
    from bucket import Server

    server = Server()
    server.create("bucket")
    yield server
    server.close()
