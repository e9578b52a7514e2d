"""Fixtures that several folders of tests share."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import TESTS

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: with two threads on a busy machine it is ten times slower
# before Ray: it reads them once a process, whichever test is the first to import it
os.environ.update(RAY_AUTH_MODE="token", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")

import torch

from genflow.data.prepare import here, prepare
from genflow.data.shards import Dataset
from genflow.recipe.schema import Data
from genflow.storage.store import Store
from genflow.training.precision import multiplies_bfloat16

# A shell starts a background job with SIGINT ignored. Processes that the tests start inherit that, and some tests
# interrupt such a process, or this one.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The files that take longest after the group of Ray, longest first: what is left at the end is short.
LONG = (
    "test_chaos.py",
    "tracking/test_sync.py",
    "training/test_loop.py",
    "sampling/test_export.py",
    "storage/test_mirror.py",
    "jobs/test_in_a_bucket.py",
    "serving/test_engine_process.py",
    "training/test_fsdp.py",
)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under pytest-xdist with `--dist loadgroup`: tests that start Ray run one after another, in one worker.

    Two Rays on two cores wait for each other. The tests of any other file stay together, because they share what
    their fixtures train. The group of Ray is the longest, so it begins first.
    """
    if not hasattr(config, "workerinput"):
        return
    ranks = {}
    for item in items:
        file = item.path.relative_to(TESTS).as_posix()
        ray = item.get_closest_marker("ray") is not None
        item.add_marker(pytest.mark.xdist_group("ray" if ray else file))
        ranks[item] = 0 if ray else LONG.index(file) + 1 if file in LONG else len(LONG) + 1
    items.sort(key=lambda item: ranks[item])



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
    from jobs.runtime.cluster import ray_cluster

    with ray_cluster(num_cpus=2):
        yield


@pytest.fixture
def without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of this process send nothing to MLflow."""
    from support.without_mlflow import silence

    silence(monkeypatch.setattr)


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow, to be copied into a store: its migrations take five seconds.

    All workers of pytest-xdist share it, for `prepare` makes it once, whichever process is first.
    """
    from genflow.tracking import database

    folder = tmp_path_factory.getbasetemp()
    store = Store((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        database.prepare(store)
    return store.root / "mlflow.db"


@pytest.fixture(scope="session")
def shelf_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Any]]:
    """One store of small models for all tests of serving, and the models as they are served."""
    from support.served import listed, trained

    store, runs = trained(tmp_path_factory.mktemp("serving") / "store")
    return store, listed(store, runs)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """An S3 server with a bucket (see bucket.py)."""
    from support.bucket import Server

    server = Server()
    server.create("bucket")
    yield server
    server.close()
