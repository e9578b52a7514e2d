"""Fixtures that several test folders share."""

import ast
import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, TESTS

os.environ["OMP_NUM_THREADS"] = "1"  # before importing torch: two threads on a busy machine are ten times slower
# before importing Ray, which reads these variables once per process
os.environ.update(RAY_AUTH_MODE="token", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
# Ray gives its workers niceness 15: next to a busy process, a test that takes 5 s would take minutes.
os.environ |= {"RAY_worker_niceness": "0"}

import torch

from genflow.data.prepare import in_process, prepare
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


@functools.cache
def starts_ray(file: Path) -> Callable[[str], bool]:
    """Which functions of a test file carry the mark `ray`, by their text: xdist's scheduler knows names alone."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    if any(isinstance(node, ast.Assign) and "mark.ray" in ast.unparse(node) for node in body):  # pytestmark
        return lambda name: True
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    marked = {node.name for node in functions if any("mark.ray" in ast.unparse(d) for d in node.decorator_list)}
    return marked.__contains__


@functools.cache
def group(path: str, name: str) -> str:
    """The tests with which a test stays together, in one worker of pytest-xdist, one after another.

    Tests that start Ray are one group, for two Rays on two cores wait for each other. The tests of any other file
    are a group, because they share what their fixtures train.
    """
    return "ray" if starts_ray(ROOT / path)(name) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole groups. `--dist loadgroup` does not: xdist 3.8 sets a name that pytest 9.2 no longer reads."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, name = nodeid.partition("::")
            return group(path, name.partition("[")[0])

    return Groups(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under pytest-xdist the longest groups begin first, and that of Ray is the longest."""
    if not hasattr(config, "workerinput"):
        return

    def rank(item: pytest.Item) -> int:
        file = item.path.relative_to(TESTS).as_posix()
        if item.get_closest_marker("ray"):
            return 0
        return LONG.index(file) + 1 if file in LONG else len(LONG) + 1

    items.sort(key=rank)


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
        artifact, _ = prepare(store, Data(source=str(source), **options), in_process, lambda event, **fields: None)
        return Dataset.open(artifact)

    return make


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray with two CPUs for the whole session, because starting it takes five seconds."""
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
def model_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Any]]:
    """A store of small runs for all tests of serving, and the runs as served models."""
    from support.served import train_models

    from genflow.serving.model_list import served_models

    store, runs = train_models(tmp_path_factory.mktemp("serving") / "store")
    return store, served_models(store, runs)


@pytest.fixture(scope="session")
def captioned_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Any], Path]:
    """A store of a run on captions and one on classes, both as served models, and the text encoder's folder."""
    from support.served import train_captioned

    from genflow.serving.model_list import served_models

    store, runs, encoder = train_captioned(tmp_path_factory.mktemp("captioned"))
    return store, served_models(store, runs), encoder


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """An S3 server with a bucket (see bucket.py)."""
    from support.bucket import Server

    server = Server()
    server.create("bucket")
    yield server
    server.close()
